"""Files that hide a pickle in an array of numpy, or in a compressed stream that is a tar besides.

``LOADERS`` in ``two_faced.py`` has their loaders: ``numpy.load``, and what ``joblib.load`` does
with a compressed file.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

LENGTH = 8  # of the stored values of the tensor


def array(pickled: bytes) -> bytes:
    """An array of objects, whose values are a pickle."""
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + pickled


def plain_array() -> bytes:
    """An array of two numbers."""
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + struct.pack("<2f", 1, 2)


def storage(values: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch with one tensor of bytes, of which the values are given."""
    numel = struct.pack("<i", len(values))
    pickled = (
        b"\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\n"
        b"ByteStorage\nX\1\0\0\0000X\3\0\0\0cpuJ" + numel + b"tQK\0J" + numel + b"\x85K\1\x85\x89"
        b"ccollections\nOrderedDict\n)RtRs."
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in (("a/data.pkl", pickled), ("a/data/0", values), ("a/version", b"3\n")):
            archive.writestr(name, data)
    return out.getvalue()


def agent(*more: tuple[str, bytes]) -> bytes:
    """A zip of stable-baselines3 with one checkpoint in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in (("data", b"{}"), ("policy.pth", storage(b"1234")), *more):
            archive.writestr(name, data)
    return out.getvalue()


LONG = bytes(1 << 20)  # behind the pickle: a reader that looks ahead does not meet the tar


def gzip_over(header: Callable[[bytes, int], bytes], pickled: bytes, rest: bytes) -> bytes:
    """A tar whose first header is skipped by a field of a gzip stream in the first member."""
    packed = gzip.compress(pickled + LONG)[10:]  # without its header
    begin = b"\x1f\x8b\x08\x04\1\1\1\1\2\xff" + struct.pack("<H", 500)
    return header(begin, len(packed)) + packed + bytes(-len(packed) % 512) + rest


def zlib_over(header: Callable[[bytes, int], bytes], pickled: bytes, rest: bytes) -> bytes:
    """A tar whose first header is bytes that the pickle in a zlib stream drops."""
    skipped = b"B" + struct.pack("<I", 500)
    begin = b"\x78\1\0" + struct.pack("<HH", 505, 505 ^ 0xFFFF) + skipped
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(b"0" + pickled + LONG) + packer.flush()
    return header(begin + b"x" * 88, len(packed)) + packed + bytes(-len(packed) % 512) + rest

"""A file of a save as another step would have written it: the same size, other values.

Every floating value changes, and every counter, be it a tensor or a number in a pickle. Checksums
are made anew and the times stay, so that nothing but the content tells the file from that of its
own save.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

from ckptool.formats import open_checkpoint
from ckptool.formats.ranked.rank_files import COUNTERS
from ckptool.tree.nodes import TensorRef
from ckptool.tree.walking import tensors

# Name of a dtype -> (byte of an element, bits): the value becomes half as large again, or smaller.
MANTISSA = {"float32": (2, 0x40), "bfloat16": (0, 0x40), "float16": (1, 0x02), "float64": (6, 0x08)}
STEPS = 10
KEYS = "|".join(sorted(COUNTERS | {"global_samples"}))
# A key in a pickle, maybe put into the memo, and a number of one byte or a double.
NUMBER = re.compile(
    rb"(?:X(.)\0\0\0|\x8c(.))(" + KEYS.encode() + rb")(?:q.|r....|\x94)?K(.)", re.DOTALL
)


def age(path: Path, save: Path) -> None:
    """Change a file, given the folder of its save."""
    data = bytearray(path.read_bytes())
    for start, size, ref, is_counter in _places(path, save):
        _change(data, start, size, ref, is_counter)
    for found in list(NUMBER.finditer(data)):
        data[found.end() - 1] += STEPS
    _renew_checksums(data)
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _places(path: Path, save: Path):
    """(offset, bytes, tensor, whether it is a counter) of the values in a file.

    A file of ``torch.distributed.checkpoint`` is none by itself; then the places are those of its
    save.
    """
    with open_checkpoint(save if path.suffix == ".distcp" else path) as checkpoint:
        for address, ref in tensors(checkpoint.tree):
            is_counter = re.split(r"[./]", str(address[-1]))[-1] in COUNTERS
            for chunk in ref.chunks:
                source, start, size = chunk.span
                if source.path is not None and source.path.name == path.name:
                    yield start, size, ref, is_counter


def _change(data: bytearray, start: int, size: int, ref: TensorRef, is_counter: bool) -> None:
    width = ref.dtype.itemsize
    if is_counter and not ref.shape:
        code = {"float32": "<f", "int64": "<q", "int32": "<i", "float64": "<d"}[ref.dtype.name]
        (value,) = struct.unpack_from(code, data, start)
        struct.pack_into(code, data, start, value + STEPS)
    elif ref.dtype.name in MANTISSA:
        byte, bits = MANTISSA[ref.dtype.name]
        for at in range(start + byte, start + size, width):
            data[at] ^= bits


def _renew_checksums(data: bytearray) -> None:
    """Write the checksums of all records of the zips in ``data``, one after the other."""
    end = 0
    while (begin := data.find(b"PK\x03\x04", end)) >= 0:
        tail = data.find(b"PK\x05\x06", begin)
        if tail < 0:
            return
        end = tail + 22
        _renew(data, begin, end)


def _renew(data: bytearray, begin: int, end: int) -> None:
    with zipfile.ZipFile(io.BytesIO(data[begin:end])) as archive:
        records = archive.infolist()
        central = begin + archive.start_dir
    for record in records:
        local = begin + record.header_offset
        name, extra = struct.unpack_from("<2H", data, local + 26)
        start = local + 30 + name + extra
        checksum = zlib.crc32(data[start : start + record.file_size])
        if record.flag_bits & 0x8:
            at = start + record.compress_size
            at += 4 if data[at : at + 4] == b"PK\x07\x08" else 0
            struct.pack_into("<I", data, at, checksum)
        else:
            struct.pack_into("<I", data, local + 14, checksum)
        struct.pack_into("<I", data, central + 16, checksum)
        sizes = struct.unpack_from("<3H", data, central + 28)
        central += 46 + sum(sizes)

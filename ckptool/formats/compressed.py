"""Compressed streams by their first bytes: ``joblib.load`` unpacks them and loads the pickle.

A file of another format can begin as one, too: a tar by the name of its first member, safetensors
by the length of its header. Where the standard library can unpack a kind, the bytes have to be a
stream of it, since the first two or three may be there by chance.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

from ckptool.records import NamedTuple


class _Kind(NamedTuple):
    name: str
    begins: bytes
    unpack: Callable[[], Callable[[bytes, int], bytes]] | None  # None: not of the standard library


def _lzma() -> Callable[[bytes, int], bytes]:
    from lzma import FORMAT_ALONE, LZMADecompressor, LZMAError  # noqa: PLC0415 - for few files

    def unpacked(data: bytes, size: int) -> bytes:
        try:
            return LZMADecompressor(FORMAT_ALONE).decompress(data, size)
        except LZMAError as error:
            raise zlib.error from error

    return unpacked


def _zlib(window: int) -> Callable[[bytes, int], bytes]:
    return zlib.decompressobj(window).decompress


# The kinds that joblib knows, and zstd, which its successors do.
_KINDS = (
    _Kind("gzip", b"\x1f\x8b", partial(_zlib, 31)),
    _Kind("zlib", b"\x78", partial(_zlib, 15)),
    _Kind("lzma", b"\x5d\0", _lzma),
    _Kind("bzip2", b"BZh", None),
    _Kind("xz", b"\xfd7zXZ\0", None),
    _Kind("lz4", b"\x04\x22\x4d\x18", None),
    _Kind("zstd", b"\x28\xb5\x2f\xfd", None),
)
MAX_UNPACKED = 64  # bytes: enough to see whether it is a stream


def compression(head: bytes) -> str | None:
    """Return the name of the compression that a file begins with; None if it begins with none."""
    return next((k.name for k in _KINDS if head.startswith(k.begins) and _unpacks(k, head)), None)


def _unpacks(kind: _Kind, head: bytes) -> bool:
    if kind.unpack is None:
        return True
    try:
        kind.unpack()(head, MAX_UNPACKED)
    except (zlib.error, EOFError):
        return False
    return True

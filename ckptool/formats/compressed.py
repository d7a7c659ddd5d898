"""Compressed streams by their first bytes: ``joblib.load`` unpacks them and loads the pickle.

A file of another format can begin as one, too: a tar by the name of its first member, safetensors
by the length of its header. Where two or three bytes mark a kind, which may be there by chance, the
bytes have to be a stream of it. Streams of one kind may follow one another, as one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Protocol

from ckptool.records import NamedTuple


class _Unpacker(Protocol):
    """An unpacker of the standard library."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, size: int, /) -> bytes:
        """Return at most ``size`` unpacked bytes."""


class _Kind(NamedTuple):
    name: str
    begins: bytes
    unpacker: Callable[[], _Unpacker] | None = None  # None: not of the standard library
    is_marked: bool = False  # its first bytes are there by no chance
    skipped: int = 0  # bytes before the stream: a length in hex


def _lzma(kind: str) -> Callable[[], _Unpacker]:
    def unpacker() -> Any:
        import lzma  # noqa: PLC0415 - for few files

        return lzma.LZMADecompressor(getattr(lzma, kind))

    return unpacker


def _bzip2() -> Any:
    from bz2 import BZ2Decompressor  # noqa: PLC0415 - for few files

    return BZ2Decompressor()


def _zlib(window: int) -> Callable[[], Any]:
    return lambda: zlib.decompressobj(window)


# The kinds that joblib knows (one of old versions, ``ZF``), and zstd, which its successors do.
_KINDS = (
    _Kind("gzip", b"\x1f\x8b", _zlib(31)),
    _Kind("zlib", b"\x78", _zlib(15)),
    _Kind("joblib", b"ZF0x", _zlib(15), skipped=21),
    _Kind("lzma", b"\x5d\0", _lzma("FORMAT_ALONE")),
    _Kind("bzip2", b"BZh", _bzip2, is_marked=True),
    _Kind("xz", b"\xfd7zXZ\0", _lzma("FORMAT_XZ"), is_marked=True),
    _Kind("lz4", b"\x04\x22\x4d\x18", is_marked=True),
    _Kind("zstd", b"\x28\xb5\x2f\xfd", is_marked=True),
)
ENOUGH = 64  # bytes: enough to see whether it is a stream


def compression(head: bytes) -> str | None:
    """Return the name of the compression that a file begins with; None if it begins with none."""
    return next((kind.name for kind in _KINDS if _is_of(kind, head)), None)


def unpacked(data: bytes, size: int) -> bytes | None:
    """Return the first ``size`` bytes that a compressed file unpacks to, as far as it is sound.

    Returns:
        None for kinds that the standard library does not unpack.
    """
    kind = next(kind for kind in _KINDS if _is_of(kind, data))
    return None if kind.unpacker is None else _unpacked(kind, data, size)[0]


def _is_of(kind: _Kind, head: bytes) -> bool:
    return head.startswith(kind.begins) and (kind.is_marked or _unpacked(kind, head, ENOUGH)[1])


def _unpacked(kind: _Kind, data: bytes, size: int) -> tuple[bytes, bool]:
    """Return the first bytes of the streams in ``data``, and whether nothing was wrong so far."""
    made, room = b"", data[kind.skipped :].removeprefix(b" " if kind.skipped else b"")
    while kind.unpacker is not None and room.strip(b"\0") and len(made) < size:
        unpacker = kind.unpacker()
        try:
            made += unpacker.decompress(
                room.lstrip(b" ") if kind.skipped else room, size - len(made)
            )
        except Exception:  # noqa: BLE001 - each module has an error of its own
            return made, bool(made)
        if not unpacker.eof:
            break
        room = unpacker.unused_data.lstrip(b"\0")
    return made, True

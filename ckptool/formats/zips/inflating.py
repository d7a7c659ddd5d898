"""The content of deflated records, unpacked piece by piece or as a whole, as long as listed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.zips.directory import ZipRecord

MAX_INFLATED = 64 << 20  # unpacked bytes of a deflated record that is read as a whole
AT_ONCE = 4096  # packed bytes of which the beginning of a record is unpacked
PIECE = 1 << 20  # bytes of a deflated record that are unpacked at a time


def unpacked(record: ZipRecord, data: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Yield the content of a deflated record piece by piece; ``data`` reads its packed bytes.

    Raises:
        DamagedError: the stream breaks off, or has another length than the directory states.
    """
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    left = record.size
    for at in range(0, record.compressed_size, PIECE):
        packed, piece = data(at, min(PIECE, record.compressed_size - at)), b""
        # After a full piece more can follow, even if all packed bytes have been taken.
        while not unpacker.eof and (packed or len(piece) == PIECE):
            try:
                piece = unpacker.decompress(packed, PIECE)
            except zlib.error as error:
                text = f"the record {record.name!r} cannot be unpacked: {error}"
                raise DamagedError(text) from error
            packed = unpacker.unconsumed_tail
            left -= len(piece)
            if left < 0:
                break
            yield piece
    if left or not unpacker.eof:
        raise DamagedError(f"the record {record.name!r} does not unpack to {record.size} bytes")


def beginning(record: ZipRecord, data: Callable[[int, int], bytes], nbytes: int) -> bytes:
    """Return the first bytes of a deflated record; fewer if it cannot be unpacked so far.

    Blocks that hold nothing may come first.
    """
    unpacker, found = zlib.decompressobj(-zlib.MAX_WBITS), b""
    for at in range(0, record.compressed_size, AT_ONCE):
        try:
            packed = data(at, min(AT_ONCE, record.compressed_size - at))
            found += unpacker.decompress(packed, nbytes - len(found))
        except zlib.error:
            break
        if len(found) == nbytes or unpacker.eof:
            break
    return found


def inflated(record: ZipRecord, data: bytes) -> bytes:
    """Return the content of a deflated record.

    Raises:
        UnsupportedError: it is too long.
        DamagedError: it cannot be unpacked, or has another length than the directory states.
    """
    if record.size > MAX_INFLATED:
        raise UnsupportedError(f"{record.name!r} is compressed and unpacks to {record.size} bytes")
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(data, record.size + 1)
    except zlib.error as error:
        raise DamagedError(f"the record {record.name!r} cannot be unpacked: {error}") from error
    if len(content) != record.size:
        raise DamagedError(f"the record {record.name!r} does not unpack to {record.size} bytes")
    return content

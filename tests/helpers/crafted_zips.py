"""Zips with any field in their headers, of which torch and ``zipfile`` see other records.

Each of ``crafted(pickle)`` is a file of torch for ckptool, and ``numpy.load``, which goes by
``zipfile``, finds an array of objects in it.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any

from helpers.unpacked import array, storage

NOTHING = b"\x80\x02}."
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA1, "lc": 3, "lp": 0, "pb": 2, "dict_size": 1 << 20}]


def entry(name: bytes, data: bytes, packed: bytes | None = None, **fields: Any) -> dict[str, Any]:
    """A record of these bytes, with other fields than they have."""
    row = {"packed": data if packed is None else packed, "crc": zlib.crc32(data), "method": 0}
    return row | {"name": name, "size": len(data), "flags": 0, "extra": b""} | fields


TORCH = (entry(b"a/data.pkl", NOTHING), entry(b"a/version", b"3\n"))


def laid_out(*entries: dict[str, Any], at: int = 0) -> tuple[bytes, bytes]:
    """The records, the first of which lies at an offset, and their directory."""
    records = directory = b""
    for row in entries:
        packed_size = row.get("packed_size", len(row["packed"]))
        sizes = (row["flags"], row["method"], 0, 33, row["crc"], packed_size, row["size"])
        begin = at + len(records)
        records += struct.pack("<4s5H3I2H", b"PK\3\4", 20, *sizes, len(row["name"]), 0)
        records += row["name"] + row["packed"]
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, *sizes, len(row["name"]), len(row["extra"]), 0, 0, 0,
            0, begin,
        ) + row["name"] + row["extra"]  # fmt: skip
    return records, directory


def end(count: int, size: int, offset: int) -> bytes:
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, offset, 0)


def end_64(count: int, size: int, offset: int) -> bytes:
    return struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 20, 20, 0, 0, count, count, size, offset)


def zip_of(*entries: dict[str, Any], count: int = 0) -> bytes:
    records, directory = laid_out(*entries)
    return records + directory + end(count or len(entries), len(directory), len(records))


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def two_ends(evil: bytes) -> bytes:
    """Torch follows the locator; ``zipfile`` takes the end record right before it."""
    records, directory = laid_out(*TORCH)
    first = records + directory
    first += end_64(len(TORCH), len(directory), len(records))
    more, other = laid_out(entry(b"x.npy", evil), at=len(first))
    body = first + more + other + end_64(1, len(other), len(first) + len(more))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(records) + len(directory), 1)
    return body + locator + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def shifted(evil: bytes) -> bytes:
    """``zipfile`` takes the directory right before the end, and shifts all offsets."""
    padding = entry(b"a/notes", bytes(400))
    records, directory = laid_out(*TORCH, padding)
    begin = len(records) + len(directory)
    more, other = laid_out(entry(b"x.npy", evil), at=begin)
    gap = len(more) + len(directory)
    _, other = laid_out(entry(b"x.npy", evil), at=begin - gap)
    comment = len(directory) - len(other)
    other = other[:32] + struct.pack("<H", comment) + other[34:] + bytes(comment)
    return records + directory + more + other + end(3, len(directory), len(records))


def crafted(pickled: bytes) -> dict[str, Callable[[], bytes]]:
    evil = array(pickled)
    packed, name = deflated(evil), b"a/x.npy"
    rows: dict[str, dict[str, Any]] = {
        "by-bzip2": entry(name, evil, bz2.compress(evil), method=12),
        "by-lzma": entry(
            name, evil, struct.pack("<BBH5s", 9, 4, 5, b"\x5d\0\0\x10\0")
            + lzma.compress(evil, lzma.FORMAT_RAW, filters=LZMA_FILTERS), method=14,
        ),
        "behind-empty-blocks": entry(name, evil, b"\0\0\0\xff\xff" * 2000 + packed, method=8),
        "longer-than-listed": entry(name, evil, deflated(evil + b"more"), method=8),
        "shorter-than-listed": entry(name, evil, packed, method=8, size=len(evil) + 5),
        "stored-in-more": entry(name, evil, evil + b"more"),
        "stored-in-less": entry(name, evil, size=len(evil) + 5),
        "masked": entry(name, evil, flags=0x2000),
    }  # fmt: skip
    return {
        **{f"array-{label}": lambda row=row: zip_of(*TORCH, row) for label, row in rows.items()},
        "array-beyond-the-count": lambda: zip_of(*TORCH, entry(name, evil), count=2),
        "array-of-another-end": lambda: two_ends(evil),
        "array-of-another-directory": lambda: shifted(evil),
        "array-called-a-folder": lambda: zip_of(
            entry(b"policy.pth", storage(b"1234")), entry(b"x/", evil)
        ),
    }

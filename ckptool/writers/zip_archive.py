"""A writer of zip archives of stored records, each aligned, from the beginning to the end.

A record's size and checksum are known when its data has been written, or later still. So the local
headers are written at the end, just before the directory. Sizes beyond 32 bits are in the extra
field 0x0001; the padding up to the alignment is an extra field called ``FB``, as in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from struct import Struct

from ckptool.formats.zips.headers import (
    CENTRAL,
    END,
    LOCAL,
    UINT16_MAX,
    UINT32_MAX,
    ZIP64_END,
    ZIP64_LOCATOR,
)
from ckptool.tensors.crc import crc32
from ckptool.writers.files.whole_file import PartialFile

ALIGNMENT = 64
UTF8_NAME = 0x800
ZIP64_FROM = UINT32_MAX  # sizes and offsets from here on need 64 bits
IN_EXTRA = UINT32_MAX  # means that the number is in the 64-bit field
DOS_DATE = 0x21  # 1980-01-01, so that the same input gives the same bytes

Checksum = Callable[[], int]  # known when it is asked for


@dataclass(slots=True)
class _Record:
    name: bytes
    offset: int  # of the local header
    start: int  # of the data
    size: int = 0
    checksum: Checksum = int


_SIZES64 = Struct("<2H2Q")
_CENTRAL64 = Struct("<2H3Q")


class ArchiveWriter:
    """A writer of stored records one after the other, and then of the directory.

    The archive begins at ``base`` in the output: its own offsets count from there.
    """

    def __init__(self, output: PartialFile, base: int = 0) -> None:
        self._output = output
        self._base = base
        self._records: list[_Record] = []
        self._end: int | None = None  # where the directory begins, once its space is left

    def add_bytes(self, name: str, data: bytes) -> None:
        """Append a whole record."""
        self.begin(name)
        self._output.write(data)
        self.end(partial(crc32, data))

    def begin(self, name: str) -> None:
        """Begin a record; bytes that are written from now on are its data."""
        encoded, offset = name.encode(), self._output.position
        self._output.skip(len(self._local(encoded, 0, 0, offset)))
        self._records.append(_Record(encoded, offset, self._output.position))

    def end(self, checksum: Checksum) -> None:
        """End the record; its header is written when the checksum is known."""
        record = self._records[-1]
        record.size, record.checksum = self._output.position - record.start, checksum

    def _local(self, name: bytes, crc: int, size: int, offset: int) -> bytes:
        """Return the local header, padded so that the data begins at a multiple of ``ALIGNMENT``.

        The 64-bit sizes are always there: the size is not known when space is left for the header.
        """
        head = LOCAL.size + len(name) + _SIZES64.size + 4
        padding = -(offset + head) % ALIGNMENT
        extra = _SIZES64.pack(1, 16, size, size) + b"FB" + padding.to_bytes(2, "little")
        extra += b"Z" * padding
        fixed = LOCAL.pack(
            b"PK\x03\x04",
            45,
            UTF8_NAME,
            0,
            0,
            DOS_DATE,
            crc,
            IN_EXTRA,
            IN_EXTRA,
            len(name),
            len(extra),
        )
        return fixed + name + extra

    def complete(self) -> list[bytes]:
        """Write the local headers, and return the entries for the directory."""
        entries = []
        for record in self._records:
            crc = record.checksum()
            local = self._local(record.name, crc, record.size, record.offset)
            self._output.patch(local, record.offset)
            entries.append(_central(record, crc, self._base))
        return entries

    def leave_end(self) -> None:
        """Leave space for the directory and the end records: more may follow in the output."""
        self._end = self._output.position
        entries = [_central(record, 0, self._base) for record in self._records]
        self._output.skip(len(_ending(entries, self._end - self._base)))

    def finish(self) -> None:
        """Write the local headers, the central directory and the end records."""
        if self._end is None:
            self.leave_end()
        assert self._end is not None
        self._output.patch(_ending(self.complete(), self._end - self._base), self._end)


def _ending(entries: Sequence[bytes], start: int) -> bytes:
    """Return the directory, which begins at ``start`` in the archive, with the end records."""
    directory = b"".join(entries)
    return directory + end_records(start, len(directory), len(entries))


def add_record(output: PartialFile, name: str, content: bytes) -> bytes:
    """Append one small record to an archive, and return its entry for the directory."""
    archive = ArchiveWriter(output)
    archive.add_bytes(name, content)
    return archive.complete()[0]


def end_records(start: int, size: int, count: int) -> bytes:
    """Return the records behind a directory of ``count`` entries in ``size`` bytes at ``start``."""
    large = b""
    if count >= UINT16_MAX or start >= ZIP64_FROM or size >= ZIP64_FROM:
        large = ZIP64_END.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
        large += ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    ends = (
        min(count, UINT16_MAX),
        min(count, UINT16_MAX),
        size if size < ZIP64_FROM else IN_EXTRA,
        start if start < ZIP64_FROM else IN_EXTRA,
    )
    return large + END.pack(b"PK\x05\x06", 0, 0, *ends, 0)


def _central(record: _Record, crc: int, base: int) -> bytes:
    at = record.offset - base
    is_large = record.size >= ZIP64_FROM or at >= ZIP64_FROM
    extra = _CENTRAL64.pack(1, 24, record.size, record.size, at) if is_large else b""
    size = IN_EXTRA if is_large else record.size
    offset = IN_EXTRA if is_large else at
    fixed = CENTRAL.pack(
        b"PK\x01\x02", 45, 45, UTF8_NAME, 0, 0, DOS_DATE, crc, size, size,
        len(record.name), len(extra), 0, 0, 0, 0, offset,
    )  # fmt: skip
    return fixed + record.name + extra

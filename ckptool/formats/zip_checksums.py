"""The checksums in torch's zips: torch writes one for each record, and never reads it.

A checksum of 0 is what ``torch.serialization.set_crc32_options(False)`` leaves behind.
"""

from __future__ import annotations

from typing import NamedTuple

from ckptool.formats.base import SourceFile
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.zip_records import (
    END,
    NO_CRC,
    STORED,
    ZIP64_END,
    ZIP64_LOCATOR,
    ZipArchive,
    ZipRecord,
    is_zip,
)


class Checksummed(NamedTuple):
    """A record: its bytes in the file, and the checksum they should have."""

    name: str
    offset: int
    nbytes: int
    crc: int | None  # None: none was written, or it is of what the bytes unpack to


def checksummed_records(file: SourceFile) -> list[Checksummed]:
    """The records of a file that is a zip; nothing for other files.

    Raises:
        DamagedError: the directory does not fit the file.
    """
    if not _is_one_archive(file):
        return []
    archive = ZipArchive(FileWindow(file))
    return [
        Checksummed(
            record.name,
            archive.data_offset(record),
            record.compressed_size,
            record.crc if _has_checksum(record) else None,
        )
        for record in archive.records
    ]


def is_storage(record: Checksummed) -> bool:
    """Whether a record of torch's holds values; the others are its pickle and a few words."""
    return "/data/" in record.name


def _has_checksum(record: ZipRecord) -> bool:
    return record.method == STORED and (record.crc != NO_CRC or record.size == 0)


def leftover_bytes(file: SourceFile) -> int:
    """Bytes behind the end record of a zip and its comment; 0 for other files."""
    end = _end_record(file)
    return file.size - end.offset - END.size - end.comment if end else 0


class _End(NamedTuple):
    """The end record, and where by its words the directory ends."""

    offset: int
    comment: int  # bytes
    directory_end: int


def _end_record(file: SourceFile) -> _End | None:
    """The last end record of a file that begins like a zip."""
    if not is_zip(file.head(4)):
        return None
    tail_size = min(file.size, END.size + 0xFFFF)
    tail = file.read(file.size - tail_size, tail_size)
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - END.size + 4)
    if at < 0:
        return None
    *_, size, offset, comment = END.unpack_from(tail, at)
    where = file.size - tail_size + at
    if 0xFFFFFFFF in (size, offset) and where >= ZIP64_END.size + ZIP64_LOCATOR.size:
        last = file.read(where - ZIP64_LOCATOR.size - ZIP64_END.size, ZIP64_END.size)
        *_, size, offset = ZIP64_END.unpack(last)
    return _End(where, comment, offset + size)


def _is_one_archive(file: SourceFile) -> bool:
    """Whether the zip is the whole file.

    The shards of ``torch.distributed`` are rows of zips, and the directory at the end of such a
    file is that of its last one.
    """
    end = _end_record(file)
    ends = (0, ZIP64_END.size + ZIP64_LOCATOR.size)
    return end is not None and end.offset - end.directory_end in ends

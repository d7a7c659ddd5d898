"""The checksums in torch's zips: torch writes one for each record, and never reads it.

A checksum of 0 is what ``torch.serialization.set_crc32_options(False)`` leaves behind.
"""

from __future__ import annotations

from typing import NamedTuple

from ckptool.formats.base import SourceFile
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.zip_records import END, NO_CRC, STORED, ZipArchive, ZipRecord, is_zip


class Checksummed(NamedTuple):
    """A record: its bytes in the file, and the checksum they should have."""

    name: str
    offset: int
    nbytes: int
    crc: int | None  # None: none was written, or it is of what the bytes unpack to


def checksummed_records(file: SourceFile) -> list[Checksummed]:
    """The records of a zip, in the order of the file; nothing for other files.

    Raises:
        DamagedError: the directory does not fit the file.
    """
    if not is_zip(file.head(4)):
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
    if not is_zip(file.head(4)):
        return 0
    tail_size = min(file.size, END.size + 0xFFFF)
    tail = file.read(file.size - tail_size, tail_size)
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - END.size + 4)
    comment: int = END.unpack_from(tail, at)[-1] if at >= 0 else 0
    return max(0, len(tail) - at - END.size - comment) if at >= 0 else 0

"""The checksums in torch's zips; torch writes one for each record, and never reads it.

With ``torch.serialization.set_crc32_options(False)`` torch writes 0 as the checksum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import attrgetter

from ckptool.errors import DamagedError
from ckptool.formats.zips.directory import ZipRecord, find_directory, find_end, read_directory
from ckptool.formats.zips.records import NO_CRC, STORED, ZipArchive, is_zip
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source


class Checksummed(NamedTuple):
    """A record with the place of its bytes in the file, and the checksum they should have."""

    name: str
    offset: int
    nbytes: int
    crc: int | None  # None: none was written, or it is of the unpacked bytes


def archive_of(file: Source) -> ZipArchive | None:
    """Return the archive that a file is; None for other files, and for a row of zips.

    It is kept with the file, since several checks ask for it.

    Raises:
        DamagedError: the directory does not fit the file.
    """
    if file.archive is None and is_one_archive(file):
        file.archive = ZipArchive(file)
    archive: ZipArchive | None = file.archive
    return archive


def checksummed_records(file: Source) -> list[Checksummed]:
    """Return the records of a file that is a zip; none for other files.

    Raises:
        DamagedError: the directory does not fit the file.
    """
    archive = archive_of(file)
    return _records_of(archive) if archive else []


def _records_of(archive: ZipArchive) -> list[Checksummed]:
    return [
        Checksummed(
            record.name,
            archive.data_offset(record),
            record.compressed_size,
            record.crc if _has_checksum(record) else None,
        )
        for record in archive.records
    ]


def known_checksums(file: Source, archive: ZipArchive | None = None) -> dict[ByteSpan, int]:
    """Return the checksums of a zip's stored records, by the places of their bytes.

    ``archive`` is the file's, where it was opened already.
    """
    return {
        file.span(record.offset, record.nbytes): record.crc
        for record in (_records_of(archive) if archive else checksummed_records(file))
        if record.crc is not None
    }


def checksums_at(file: Source, spans: Iterable[ByteSpan]) -> list[int | None]:
    """Return the checksums of spans in an open zip that are whole records; None: not known.

    The local headers were read when the spans were made. The directory alone is read again, since
    records do not overlap: a span lies in the last record that begins before it.

    Raises:
        DamagedError: the directory does not fit the file.
    """
    records = sorted(read_directory(find_directory(file), [], set()), key=_HEADER)
    headers = list(map(_HEADER, records))
    outermost, shift, _ = file.span(0, 0)
    found: list[int | None] = []
    for source, offset, nbytes in spans:
        at = bisect_left(headers, offset - shift) - 1
        is_in = source is outermost and at >= 0 and records[at].size == nbytes
        found.append(known_crc(records[at]) if is_in else None)
    return found


_HEADER = attrgetter("header_offset")


def known_crc(record: ZipRecord) -> int | None:
    """Return the checksum that the bytes of a stored record should have; None: none was written."""
    return record.crc if _has_checksum(record) else None


def is_storage(record: Checksummed) -> bool:
    """Return whether a record of torch holds values; the others are its pickle and a few words."""
    return "/data/" in record.name


def _has_checksum(record: ZipRecord) -> bool:
    return record.method == STORED and (record.crc != NO_CRC or record.size == 0)


def leftover_bytes(file: Source) -> int:
    """Return the number of bytes behind a zip's end record and comment; 0 for other files."""
    if not is_zip(file.head(4)):
        return 0
    try:
        end = find_end(file)
    except DamagedError:  # a row of zips: see below
        return 0
    return end.behind - end.comment if end else 0


def is_one_archive(file: Source) -> bool:
    """Return whether the zip is the whole file, by the directory that torch uses.

    A shard of ``torch.distributed`` is a row of zips. The directory of the last zip counts offsets
    from the beginning of that zip. At those offsets the file has other bytes, or the directory and
    the end records of another zip.
    """
    if not is_zip(file.head(4)):
        return False
    try:
        end = find_end(file)
    except DamagedError:  # a locator whose offset counts from elsewhere
        return False
    if end is None or end.gap < 0:
        return False
    begin, stop = end.directory_offset, end.directory_offset + end.directory_size
    is_directory = file.read(begin, min(4, end.directory_size)) in {b"PK\x01\x02", b""}
    return is_directory and not (
        _ends_another(file, stop, end.directory_end) or _ends_another(file, end.follows, end.next)
    )


def _ends_another(file: Source, at: int, own: int) -> bool:
    """Return whether an end record of another archive is at ``at``, and not at our ``own``."""
    return at != own and file.read(at, min(4, file.size - at)) in _PARTS_OF_ENDS


_PARTS_OF_ENDS = {b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"}

"""What a torch zip keeps about its bytes, brought up to date in a patched copy.

Each record has its checksum in the directory, in the local header and maybe behind the data; all
are refreshed. A storage that another storage replaced as a whole takes over its known checksum
without a second read; one that was made as a whole has the checksum of what was made. Where every
checksum is 0 they stay so: the file was written with checksums off, and torch reads it so.

Provenance is one more record at the end, in the archive's folder, which torch never asks for. The
directory moves behind it; its old entries stay byte for byte.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ckptool.errors import DamagedError
from ckptool.formats.base import SourceFile
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.torch_zip import PROVENANCE, TorchRecords
from ckptool.formats.zip_records import (
    CENTRAL,
    END,
    HAS_DESCRIPTOR,
    LOCAL,
    NO_CRC,
    ZIP64_END,
    ZIP64_LOCATOR,
    ZipArchive,
    ZipRecord,
)
from ckptool.tree import ByteSpan
from ckptool.writers.base import PartialFile
from ckptool.writers.patched_copy import Patch
from ckptool.writers.values import checksum
from ckptool.writers.zip_archive import add_record, write_end

CENTRAL_CRC = 16  # offsets of the checksum in each structure
LOCAL_CRC = 14
DESCRIPTOR_SIGNATURE = b"PK\x07\x08"


def finish(
    output: PartialFile,
    file: SourceFile,
    patches: Sequence[Patch],
    made: Mapping[str, int],
    note: str,
) -> None:
    """Refresh the checksums of the records in which targets lie, and add the note.

    ``made`` has the checksums of the values that did not come as bytes of a file.
    """
    archive = ZipArchive(FileWindow(file))
    if any(record.crc != NO_CRC for record in archive.records):
        known = _known_checksums(archive, file.path)
        for record, inside in _touched(archive, patches):
            whole = _whole(archive, record, inside)
            crc = made.get(whole.name, known.get(whole.source.chunks[0].span)) if whole else None
            _refresh(output, archive, record, crc)
    _append(output, archive, note.encode())


# --------------------------------------------------------------------------------------- checksums


def _touched(archive: ZipArchive, patches: Iterable[Patch]) -> list[tuple[ZipRecord, list[Patch]]]:
    """The records that hold a target, each with the patches in it."""
    records = sorted(archive.records, key=lambda record: record.header_offset)
    starts = [record.header_offset for record in records]
    touched: dict[int, tuple[ZipRecord, list[Patch]]] = {}
    for patch in patches:
        at = bisect_right(starts, patch.place.offset) - 1
        touched.setdefault(at, (records[at], []))[1].append(patch)
    return list(touched.values())


def _known_checksums(archive: ZipArchive, path: Path) -> dict[ByteSpan, int]:
    """Of what could be a whole source."""
    return {
        ByteSpan(path, archive.data_offset(record), record.size): record.crc
        for record in archive.records
        if record.crc != NO_CRC
    }


def _whole(archive: ZipArchive, record: ZipRecord, inside: Iterable[Patch]) -> Patch | None:
    """A patch that overwrites all of a record; others in it then put the same bytes there."""
    extent = (archive.data_offset(record), record.size)
    return next((p for p in inside if p.fills_its_place and p.place[1:] == extent), None)


def _refresh(output: PartialFile, archive: ZipArchive, record: ZipRecord, crc: int | None) -> None:
    start = archive.data_offset(record)
    if crc is None:
        crc = checksum(lambda at, nbytes: output.read(start + at, nbytes), record.size)
    data = crc.to_bytes(4, "little")
    output.patch(data, record.entry_offset + CENTRAL_CRC)
    header = archive.source.read(record.header_offset, LOCAL.size)
    has_descriptor = record.flags & HAS_DESCRIPTOR
    if not has_descriptor or header[LOCAL_CRC : LOCAL_CRC + 4] != bytes(4):
        output.patch(data, record.header_offset + LOCAL_CRC)
    if has_descriptor:
        _refresh_descriptor(output, archive, record, data)


def _refresh_descriptor(
    output: PartialFile, archive: ZipArchive, record: ZipRecord, crc: bytes
) -> None:
    """The checksum behind the data, whose signature is optional."""
    at = archive.data_offset(record) + record.compressed_size
    signed = archive.source.read(at, 4) == DESCRIPTOR_SIGNATURE
    at += 4 if signed else 0
    if archive.source.read(at, 4) != record.crc.to_bytes(4, "little"):
        raise DamagedError(f"the record {record.name!r} disagrees with its data descriptor")
    output.patch(crc, at)


# -------------------------------------------------------------------------------------- provenance


def _append(output: PartialFile, archive: ZipArchive, note: bytes) -> None:
    """Put the note where the directory began, and the directory behind it.

    The note of an earlier promotion is replaced; where another program put records behind it, its
    bytes stay, and only the directory forgets it. An archive with more behind its directory than
    torch writes there keeps that, and gets no note.
    """
    if not _has_plain_end(output, archive):
        return
    name = TorchRecords(archive).folder + PROVENANCE
    kept = [record for record in archive.records if record.name != name]
    entries = b"".join(_entry(output, record) for record in kept)
    last = max(archive.records, key=lambda record: record.header_offset)
    directory = archive.records[0].entry_offset
    output.cut(last.header_offset if last.name == name else directory)
    entry = add_record(output, name, note)
    start = output.position
    output.write(entries + entry)
    write_end(output, start, len(kept) + 1)


def _entry(output: PartialFile, record: ZipRecord) -> bytes:
    """A record's entry in the directory, with its name, extra field and comment."""
    fixed = CENTRAL.unpack(output.read(record.entry_offset, CENTRAL.size))
    name, extra, comment = fixed[12:15]
    return output.read(record.entry_offset, CENTRAL.size + name + extra + comment)


def _has_plain_end(output: PartialFile, archive: ZipArchive) -> bool:
    """Whether nothing but the end records follows the directory: no comment, no leftovers."""
    last = archive.records[-1]
    at = last.entry_offset + len(_entry(output, last))
    tail = output.read(at, output.position - at)
    is_one = len(tail) in {END.size, ZIP64_END.size + ZIP64_LOCATOR.size + END.size}
    return is_one and tail[-END.size :].startswith(b"PK\x05\x06")

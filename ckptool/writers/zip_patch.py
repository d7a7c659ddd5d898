"""Checksums and provenance of a torch zip, updated in a patched copy.

Each record has its checksum in the directory, in the local header and maybe after the data; all are
updated. If another storage replaced a whole storage, its known checksum is taken over without a
second read. If a whole storage was made here, its checksum is known too. If every checksum is 0,
they stay 0: the file was written with checksums off, and torch reads such a file.

Provenance is one more record at the end, in the archive's folder; torch never reads it. The
directory moves behind that record; its old entries stay byte for byte.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from ckptool.errors import DamagedError
from ckptool.formats.provenance import final
from ckptool.formats.torch_records import PROVENANCE, TorchRecords
from ckptool.formats.zips.checksums import known_checksums
from ckptool.formats.zips.directory import ZipRecord
from ckptool.formats.zips.headers import CENTRAL, END, LOCAL, ZIP64_END, ZIP64_LOCATOR
from ckptool.formats.zips.records import HAS_DESCRIPTOR, NO_CRC, ZipArchive
from ckptool.sources.base import Source
from ckptool.tensors.crc import checksum
from ckptool.writers.files.whole_file import PartialFile
from ckptool.writers.patched_copy import Patch
from ckptool.writers.zip_archive import add_record, end_records

CENTRAL_CRC = 16  # offsets of the checksum in each structure
LOCAL_CRC = 14
SHORT_DESCRIPTOR = 12  # bytes of one without its signature, with sizes of 32 bits
DESCRIPTOR_SIGNATURE = b"PK\x07\x08"


def finish(
    output: PartialFile, file: Source, patches: Sequence[Patch], made: Mapping[str, int], note: str
) -> None:
    """Update the checksums of the records in which targets lie, and add the note.

    ``made`` has the checksums of the values that were not copied as bytes of a file.

    Raises:
        DamagedError: bytes of a record are bytes of another one, or of the directory, too.
    """
    archive = ZipArchive(file)
    _refuse_overlaps(archive)
    if any(record.crc != NO_CRC for record in archive.records):
        known = known_checksums(file, archive)
        for record, inside in _touched(archive, patches):
            whole = _whole(archive, record, inside)
            crc = made.get(whole.name, known.get(whole.source.chunks[0].span)) if whole else None
            _refresh(output, archive, record, crc)
    _append(output, archive, final(note).encode())


def _refuse_overlaps(archive: ZipArchive) -> None:
    """Refuse records that reach into the next one, as their local headers place them.

    The directory does not tell: the name and the extra field in a local header have lengths of
    their own.
    """
    records = sorted(archive.records, key=lambda record: record.header_offset)
    ends = [record.header_offset for record in records[1:]]
    directory = archive.records[0].entry_offset
    for record, end in zip(records, [*ends, directory], strict=True):
        descriptor = SHORT_DESCRIPTOR if record.flags & HAS_DESCRIPTOR else 0
        if archive.data_offset(record) + record.compressed_size + descriptor > end:
            raise DamagedError(f"the record {record.name!r:.80} reaches into what follows it")


def _touched(archive: ZipArchive, patches: Iterable[Patch]) -> list[tuple[ZipRecord, list[Patch]]]:
    """Return the records that hold a target, each with the patches in it."""
    records = sorted(archive.records, key=lambda record: record.header_offset)
    starts = [record.header_offset for record in records]
    touched: dict[int, tuple[ZipRecord, list[Patch]]] = {}
    for patch in patches:
        at = bisect_right(starts, patch.place.offset) - 1
        touched.setdefault(at, (records[at], []))[1].append(patch)
    return list(touched.values())


def _whole(archive: ZipArchive, record: ZipRecord, inside: Iterable[Patch]) -> Patch | None:
    """Return a patch that overwrites all of a record; others in the record write the same bytes."""
    extent = (archive.data_offset(record), record.size)
    return next((p for p in inside if p.fills_its_place and p.place[1:] == extent), None)


def _refresh(output: PartialFile, archive: ZipArchive, record: ZipRecord, crc: int | None) -> None:
    start = archive.data_offset(record)
    if crc is None:
        crc = checksum(output.read, record.size, start)
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
    """Update the checksum after the data, whose signature is optional."""
    at = archive.data_offset(record) + record.compressed_size
    signed = archive.source.read(at, 4) == DESCRIPTOR_SIGNATURE
    at += 4 if signed else 0
    if archive.source.read(at, 4) != record.crc.to_bytes(4, "little"):
        raise DamagedError(f"the record {record.name!r} disagrees with its data descriptor")
    output.patch(crc, at)


def _append(output: PartialFile, archive: ZipArchive, note: bytes) -> None:
    """Put the note at the place of the directory, and the directory behind it.

    The note of an earlier promotion is replaced. If another program put records behind that note,
    its bytes stay, and only the directory drops it. If an archive has more after its directory than
    torch writes there, that stays, and no note is added.
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
    entries += entry
    output.write(entries + end_records(start, len(entries), len(kept) + 1))


def _entry(output: PartialFile, record: ZipRecord) -> bytes:
    """Return a record's entry in the directory, with its name, extra field and comment."""
    fixed = CENTRAL.unpack(output.read(record.entry_offset, CENTRAL.size))
    name, extra, comment = fixed[10:13]
    return output.read(record.entry_offset, CENTRAL.size + name + extra + comment)


def _has_plain_end(output: PartialFile, archive: ZipArchive) -> bool:
    """Return whether only end records follow the directory, without a comment or other bytes."""
    last = archive.records[-1]
    at = last.entry_offset + len(_entry(output, last))
    tail = output.read(at, output.position - at)
    is_one = len(tail) in {END.size, ZIP64_END.size + ZIP64_LOCATOR.size + END.size}
    return is_one and tail[-END.size :].startswith(b"PK\x05\x06")

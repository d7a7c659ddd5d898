"""A copy of a torch zip in which some tensors have other values, and every other byte is the same.

The file is copied by the kernel, the target tensors' bytes are overwritten in place, and the
checksums of the records they lie in are refreshed in the directory, in the local header and in the
data descriptor. The pickle is not touched: optimizer, epoch and instances of classes that nobody
has installed stay as they were.

Where every checksum is 0 they stay so: the file was written with checksums off, and torch reads
it so.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptool.dtypes import DType
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import SourceFile, TensorReader
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.zip_records import HAS_DESCRIPTOR, LOCAL, NO_CRC, ZipArchive, ZipRecord
from ckptool.numerics import BLOCK, Progress, cast, element_dtype, no_progress, strided
from ckptool.tree import ByteSpan, Chunk, TensorRef, extent
from ckptool.writers.base import PartialFile, expect

CENTRAL_CRC = 16  # offsets of the checksum in each structure
MAX_PLACES = 1 << 20  # elements of an interleaved view that are looked at one by one
LOCAL_CRC = 14
SCALES = "float8_e8m0fnu"  # powers of two without zero or sign: other numbers make no sense there
DESCRIPTOR_SIGNATURE = b"PK\x07\x08"


@dataclass(frozen=True, slots=True)
class Patch:
    """Values that move from one tensor of the file to another."""

    name: str  # of the target, for messages
    target: TensorRef
    source: TensorRef

    @property
    def is_plain(self) -> bool:
        """Whether it is a move of bytes: same type, same order of elements in memory."""
        ours, theirs = self.target.chunks[0], self.source.chunks[0]
        same_order = ours.strides == theirs.strides and _is_dense(ours)
        both_plain = ours.is_contiguous and theirs.is_contiguous
        return (
            self.target.dtype is self.source.dtype
            and self.target.byteorder == self.source.byteorder
            and not self.source.lazy
            and not self.target.lazy
            and (same_order or both_plain)
        )


def _is_dense(chunk: Chunk) -> bool:
    numel = 1
    for size in chunk.shape:
        numel *= size
    return extent(chunk.shape, chunk.strides) == numel


def check_patch(patch: Patch, path: Path) -> None:
    """Refuse what cannot be moved exactly.

    Raises:
        UnsupportedError: no values, several blocks, or a conversion that is no cast of real
        numbers.
    """
    target, source = patch.target, patch.source
    for ref in (target, source):
        if len(ref.chunks) != 1 or ref.quantizer is not None:
            raise UnsupportedError("only tensors with plain stored values move", address=patch.name)
    chunk = target.chunks[0]
    if chunk.span.source != path or target.lazy or _shares_memory(chunk):
        raise UnsupportedError(
            "the slot is no run of values in the file of their own (encoded in the pickle, "
            "conjugated or expanded)",
            address=patch.name,
            hint="ckptool extract-ema writes the averaged weights as a file of their own",
        )
    if patch.is_plain:
        return
    if target.dtype is not source.dtype and not _casts(source.dtype, target.dtype):
        raise UnsupportedError(
            f"{source.dtype} values do not go into a {target.dtype} slot", address=patch.name
        )


def _shares_memory(chunk: Chunk) -> bool:
    """Whether two elements of a view are one in memory, as after ``expand``."""
    reach, clear = 0, True
    dimensions = zip(chunk.strides, chunk.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dimensions if size > 1):
        clear, reach = clear and stride > reach, reach + stride * (size - 1)
    return not clear and not _all_places_differ(chunk)


def _all_places_differ(chunk: Chunk) -> bool:
    """The exact answer, for the rare views whose dimensions interleave; a large one is refused."""
    places = {0}
    count = 1
    for size, stride in zip(chunk.shape, chunk.strides, strict=True):
        count *= size
        if count > MAX_PLACES or len(places) * size > MAX_PLACES:
            return False
        places = {place + i * stride for place in places for i in range(size)}
    return len(places) == count


def _casts(source: DType, target: DType) -> bool:
    """Whether values of one type are cast to the other, as ``copy_`` does it silently."""
    are_numbers = source.numpy is not None and target.numpy is not None
    return are_numbers and {source.kind, target.kind} == {"float"} and target.name != SCALES


def write(
    output: PartialFile,
    file: SourceFile,
    patches: Sequence[Patch],
    reader: TensorReader,
    progress: Progress = no_progress,
) -> None:
    """Copy ``file``, move the values, refresh the checksums."""
    output.copy_file(file, progress)
    for patch in patches:
        if patch.is_plain:
            output.place(reader, patch.source.chunks[0].span, patch.target.chunks[0].span.offset)
        else:
            span = patch.target.chunks[0].span
            there = output.read(span.offset, span.nbytes)
            output.patch(rearranged(there, reader, patch), span.offset)
    archive = ZipArchive(FileWindow(file))
    if not any(record.crc != NO_CRC for record in archive.records):
        return
    known = _known_checksums(archive)
    for record, inside in _touched(archive, patches):
        crc = _moved_checksum(archive, record, inside, known)
        _refresh(output, archive, record, crc)


def rearranged(there: bytes, reader: TensorReader, patch: Patch) -> bytes:
    """The bytes ``there`` with the source's values in them: cast, and in the target's strides.

    Bytes between the target's elements stay. Takes memory for one tensor.
    """
    ours, theirs = patch.target.chunks[0], patch.source.chunks[0]
    wanted, given = element_dtype(patch.target), element_dtype(patch.source)
    content = bytearray(there)
    source = strided(reader.read(theirs.span), theirs, given)
    if "conj" in patch.source.lazy:
        source = source.conj()
    if "neg" in patch.source.lazy:
        source = -source
    target = strided(content, ours, wanted)
    target[...] = cast(source, wanted)
    return bytes(content)


# --------------------------------------------------------------------------------------- checksums

_Inside = list[Patch]


def _touched(archive: ZipArchive, patches: Iterable[Patch]) -> list[tuple[ZipRecord, _Inside]]:
    """The records that hold a target, each with the patches in it."""
    records = sorted(archive.records, key=lambda record: record.header_offset)
    starts = [record.header_offset for record in records]
    touched: dict[int, tuple[ZipRecord, _Inside]] = {}
    for patch in patches:
        at = bisect_right(starts, patch.target.chunks[0].span.offset) - 1
        touched.setdefault(at, (records[at], []))[1].append(patch)
    return list(touched.values())


def _known_checksums(archive: ZipArchive) -> dict[tuple[int, int], int]:
    """(data offset, size) -> checksum, looked up only for records that could be a whole source."""
    by_header = {record.header_offset: record for record in archive.records}
    return {
        (archive.data_offset(record), record.size): record.crc
        for record in by_header.values()
        if record.crc != NO_CRC
    }


def _moved_checksum(
    archive: ZipArchive,
    record: ZipRecord,
    inside: _Inside,
    known: dict[tuple[int, int], int],
) -> int | None:
    """The checksum of a record that became another's copy as a whole: no second read. Else None."""
    spans = {patch.source.chunks[0].span for patch in inside}
    if len(spans) != 1 or not all(patch.is_plain for patch in inside):
        return None
    (span,) = spans
    target = inside[0].target.chunks[0].span
    if span.source != target.source:  # the checksums known are those of this file
        return None
    if (target.offset, target.nbytes) != (archive.data_offset(record), record.size):
        return None
    return known.get((span.offset, span.nbytes))


def _refresh(output: PartialFile, archive: ZipArchive, record: ZipRecord, crc: int | None) -> None:
    start = archive.data_offset(record)
    if crc is None:
        crc = _checksum(output, start, record.size)
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


def _checksum(output: PartialFile, start: int, size: int) -> int:
    crc = 0
    for at in range(start, start + size, BLOCK):
        crc = zlib.crc32(output.read(at, min(BLOCK, start + size - at)), crc)
    return crc


# ----------------------------------------------------------------------------------------- checking


def check(output: PartialFile, patches: Sequence[Patch], reader: TensorReader) -> None:
    """Read the targets back and compare them with their sources.

    Raises:
        DamagedError: a byte differs.
    """
    with SourceFile(output.path) as written:
        for patch in patches:
            span = patch.target.chunks[0].span
            if patch.is_plain:
                _compare(written, span, reader, patch.source.chunks[0].span, patch.name)
            else:
                found = written.read(span.offset, span.nbytes)
                expect(found == rearranged(found, reader, patch), patch.name, output.path)


def _compare(
    written: SourceFile, target: ByteSpan, reader: TensorReader, source: ByteSpan, name: str
) -> None:
    for start in range(0, target.nbytes, BLOCK):
        count = min(BLOCK, target.nbytes - start)
        found = written.read(target.offset + start, count)
        expect(found == reader.read(source, start, count), name, written.path)

"""Every byte of a checkpoint read once: for its checksum, and for values that are not finite.

The file is cut into regions: a record of a zip, or the span of a tensor where there are none. A
thread takes a region and goes through it in blocks that stay in the processor's cache, so that the
checksum and the arithmetic cost no second trip to memory; both release the GIL. The look at the
values only asks whether all of them are finite; the few regions where they may not be are counted
tensor by tensor afterwards, exactly.

Who reads a region anyway, because its values are written elsewhere, sees the same on the way, and
the region is left to him.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from threading import local
from typing import NamedTuple

from ckptool.crc import Seen, crc32
from ckptool.formats.base import SourceFile, TensorReader
from ckptool.formats.zip_checksums import Checksummed, checksummed_records, is_storage
from ckptool.numerics import BLOCK, FiniteTest, Progress, finite_test
from ckptool.ranks import Ranks
from ckptool.rules import BYTES, VALUES
from ckptool.tree import Address, ByteSpan, TensorRef, format_address

THREADS = min(8, os.cpu_count() or 1)
BATCH = 8 << 20  # bytes that a thread takes at a time
REGION_COST = 1 << 14  # what a region costs beside its bytes, in bytes

Tensors = tuple[tuple[Address, TensorRef], ...]


class Region(NamedTuple):
    """A run of bytes in a file that is read in one go."""

    file: SourceFile
    offset: int
    nbytes: int
    record: Checksummed | None
    tensors: Tensors
    test: FiniteTest | None  # None: its values are not looked at on the way

    @property
    def span(self) -> ByteSpan:
        """The same run, as tensors have it."""
        return ByteSpan(self.file.path, self.offset, self.nbytes)


class BrokenRecord(NamedTuple):
    """A record whose bytes are not those that were written."""

    name: str
    nbytes: int
    crc: int
    found: int
    tensors: tuple[str, ...]  # addresses


class Scan(NamedTuple):
    """What reading everything has shown."""

    records: int  # of zips
    without_checksum: int
    broken: tuple[BrokenRecord, ...]
    suspects: Tensors  # may hold values that are not finite; all others do not
    left: tuple[Region, ...] = ()  # to others, who pass there

    def __add__(self, other: object) -> Scan:
        """Of two parts of what there is to read."""
        if not isinstance(other, Scan):
            return NotImplemented
        return Scan(
            self.records + other.records,
            self.without_checksum + other.without_checksum,
            self.broken + other.broken,
            self.suspects + other.suspects,
            self.left + other.left,
        )


def scan(
    reader: TensorReader,
    tensors: Mapping[Address, TensorRef],
    reads: frozenset[str],
    progress: Progress,
    *,
    elsewhere: bool = True,
    passed: Collection[ByteSpan] = (),
    ranks: Ranks = Ranks(),  # noqa: B008 - a tuple
) -> Scan:
    """Read what was asked for: the ``bytes`` of records, the ``values`` of floating tensors.

    Without ``elsewhere`` storages that hold none of the tensors are left out, and so are the
    regions that somebody else has ``passed`` in the end: see :func:`completed`. Every one of the
    ``ranks`` reads a part, and knows what all have seen.

    Raises:
        DamagedError: a file ends before what is to be read.
    """
    planned, apart = _plan(reader, tensors, reads, elsewhere=elsewhere)
    left = tuple(region for region in planned if region.span in passed)
    regions = [region for region in planned if region.span not in passed] if left else planned
    seen = ranks.work(list(_batches(regions)), partial(_seen, progress), _nbytes)
    all_seen = (Seen(*each) for each in chain.from_iterable(seen))  # tuples, from other ranks
    pairs = zip(regions, all_seen, strict=True)
    return Scan(0, 0, (), apart, left) + _judged(pairs)


def completed(so_far: Scan, seen: Mapping[ByteSpan, Seen]) -> Scan:
    """A scan with what others have seen of the regions that were left to them."""
    passed = _judged((region, seen[region.span]) for region in so_far.left)
    return so_far._replace(left=()) + passed


def _judged(pairs: Iterable[tuple[Region, Seen]]) -> Scan:
    broken: list[BrokenRecord] = []
    suspects: list[tuple[Address, TensorRef]] = []
    records = without = 0
    for region, seen in pairs:
        record = region.record
        if record:
            records += 1
            without += record.crc is None
        if record and record.crc is not None and seen.crc != record.crc:
            names = tuple(format_address(address) for address, _ in region.tensors)
            broken.append(BrokenRecord(record.name, record.nbytes, record.crc, seen.crc, names))
        if region.test and not seen.is_finite:
            suspects += region.tensors
    return Scan(records, without, tuple(broken), tuple(suspects))


# ------------------------------------------------------------------------------------------- plan


def _plan(
    reader: TensorReader,
    tensors: Mapping[Address, TensorRef],
    reads: frozenset[str],
    *,
    elsewhere: bool,
) -> tuple[list[Region], Tensors]:
    """The regions to read, as the files have them, and the tensors to look at one by one."""
    held: dict[tuple[Path, int, int], list[tuple[Address, TensorRef]]] = {}
    apart: list[tuple[Address, TensorRef]] = []
    shelves = {file.path: _Shelf(file) for file in _files(reader, tensors)}
    for address, ref in tensors.items():
        place = _place(ref, shelves)
        if place is not None:
            held.setdefault(place, []).append((address, ref))
        elif ref.dtype.is_floating:
            apart.append((address, ref))
    for path, shelf in shelves.items():
        for each in shelf.records:
            if elsewhere or not is_storage(each):
                held.setdefault((path, each.offset, each.nbytes), [])
    regions = []
    for (path, offset, nbytes), group in sorted(held.items(), key=lambda item: item[0]):
        record = shelves[path].around(offset, nbytes) if BYTES in reads else None
        test = _common_test(offset, group) if VALUES in reads else None
        if test is None and VALUES in reads:
            apart += [(address, ref) for address, ref in group if ref.dtype.is_floating]
        if record is not None or test is not None:
            file = shelves[path].file
            regions.append(Region(file, offset, nbytes, record, tuple(group), test))
    return regions, tuple(apart) if VALUES in reads else ()


def _files(reader: TensorReader, tensors: Mapping[Address, TensorRef]) -> Iterator[SourceFile]:
    sources = {chunk.span.source for ref in tensors.values() for chunk in ref.chunks}
    for path in sorted(source for source in sources if isinstance(source, Path)):
        reader.file(path)
    yield from reader.opened


class _Shelf:
    """The records of a file, to be found by the bytes in them."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.records = sorted(checksummed_records(file), key=lambda record: record.offset)
        self.extents = [(record.offset, record.nbytes) for record in self.records]
        self._starts = [offset for offset, _ in self.extents]

    def around(self, offset: int, nbytes: int) -> Checksummed | None:
        """The record that the bytes are in."""
        nth = bisect_right(self._starts, offset) - 1
        if nth < 0:
            return None
        record = self.records[nth]
        return record if offset + nbytes <= record.offset + record.nbytes else None


def _place(ref: TensorRef, shelves: Mapping[Path, _Shelf]) -> tuple[Path, int, int] | None:
    """The run of bytes in which a tensor is read: its record, or its own span."""
    span = ref.chunks[0].span if len(ref.chunks) == 1 else None
    if span is None or not isinstance(span.source, Path):
        return None
    record = shelves[span.source].around(span.offset, span.nbytes)
    held = record or span
    return span.source, held.offset, held.nbytes


def _common_test(offset: int, group: Sequence[tuple[Address, TensorRef]]) -> FiniteTest | None:
    """A test for all values of a region, where they are of one type and lie in step."""
    refs = [ref for _, ref in group if ref.dtype.is_floating]
    types = {(ref.dtype, ref.byteorder) for ref in refs}
    if len(types) != 1:
        return None
    width = refs[0].dtype.itemsize
    in_step = all((ref.chunks[0].span.offset - offset) % width == 0 for ref in refs)
    return finite_test(refs[0].dtype, refs[0].byteorder) if in_step else None


# ---------------------------------------------------------------------------------------- reading


Batch = list[Region]


def _batches(regions: Sequence[Region]) -> Iterator[Batch]:
    """What a thread takes at a time: many small tensors, or a large one."""
    batch: Batch = []
    held = 0
    for region in regions:
        batch.append(region)
        held += region.nbytes + REGION_COST
        if held >= BATCH:
            yield batch
            batch, held = [], 0
    yield batch


def _nbytes(batch: Batch) -> int:
    return sum(region.nbytes + REGION_COST for region in batch)


def _seen(progress: Progress, batches: Sequence[Batch]) -> list[list[Seen]]:
    """What there is to see in each batch; some threads read."""
    seen: list[list[Seen]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for batch, found in zip(batches, pool.map(_read_all, batches), strict=True):
            progress(sum(region.nbytes for region in batch))
            seen.append(found)
    return seen


def _read_all(batch: Batch) -> list[Seen]:
    return [_read(region) for region in batch]


_ROOM = local()  # a buffer for each thread


def _read(region: Region) -> Seen:
    """The checksum of a region, where it has one, and whether all its values are finite."""
    if not hasattr(_ROOM, "buffer"):
        _ROOM.buffer = memoryview(bytearray(BLOCK))
    has_crc = region.record is not None and region.record.crc is not None
    crc, is_finite, at, end = 0, True, region.offset, region.offset + region.nbytes
    while at < end:
        block = _ROOM.buffer[: min(BLOCK, end - at)]
        region.file.fill(block, at)
        crc = crc32(block, crc) if has_crc else 0
        if region.test is not None and is_finite:
            is_finite = region.test(block)
        at += len(block)
    return Seen(region.nbytes, crc, is_finite)

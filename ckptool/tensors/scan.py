"""One pass over every byte of a checkpoint, for checksums and for non-finite values.

The file is cut into regions. A region is a record of a zip, or the span of a tensor in other
files. A thread reads a region in blocks that stay in the CPU's cache, so that the checksum and the
arithmetic cost no second trip to memory; both release the GIL. The pass over the values only tests
whether all of them are finite. The few regions that fail the test are counted tensor by tensor
afterwards, exactly.

A caller that reads a region anyway, to write its values elsewhere, computes the same on the way.
The scan then leaves that region to the caller.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path

from ckptool.formats.base import TensorReader
from ckptool.formats.npy import HEAD_BYTES, values_at
from ckptool.formats.zips.checksums import Checksummed, checksummed_records, is_storage
from ckptool.process.limits import usable_cpus
from ckptool.process.progress import Progress, announce
from ckptool.process.ranks import Ranks
from ckptool.records import NamedTuple
from ckptool.reports.rules import BYTES, VALUES
from ckptool.sources.base import ByteSpan, Source
from ckptool.tensors.blocks import BLOCK, in_batches, room
from ckptool.tensors.crc import Seen, crc32
from ckptool.tensors.finite import FiniteTest, Values, finite_test
from ckptool.tensors.volume import REPEATS, refuse_volume
from ckptool.tensors.windows import Window, windows
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, TensorRef

THREADS = min(32, usable_cpus())  # their calls are long, so that none waits for another
BATCH = 8 << 20  # bytes that a thread takes at a time
REGION_COST = 1 << 14  # the overhead of a region, in bytes

Tensors = tuple[tuple[Address, TensorRef], ...]


class Region(NamedTuple):
    """A run of bytes in a file that is read in one go."""

    source: Source
    offset: int
    nbytes: int
    record: Checksummed | None
    tensors: Tensors
    test: FiniteTest | None  # None: the scan does not test its values

    @property
    def span(self) -> ByteSpan:
        """The region as a span of bytes, as tensors have it."""
        return ByteSpan(self.source, self.offset, self.nbytes)


class BrokenRecord(NamedTuple):
    """A record whose bytes do not match its checksum."""

    name: str
    nbytes: int
    crc: int
    found: int
    tensors: tuple[str, ...]  # key paths
    path: Path | None = None  # of its file on this machine


@dataclass(frozen=True, slots=True)
class Scan:
    """The results of a pass over the bytes."""

    records: int  # of zips
    without_checksum: int
    broken: tuple[BrokenRecord, ...]
    suspects: Tensors  # may hold non-finite values; all others do not
    left: tuple[Region, ...] = ()  # regions that the caller reads
    arrays: tuple[Region, ...] = ()  # records behind a URL that begin as files of numpy
    varied: frozenset[Address] = frozenset()  # tensors of several values, for certain

    def __add__(self, other: Scan) -> Scan:
        """Combine the scans of two parts."""
        return Scan(
            self.records + other.records,
            self.without_checksum + other.without_checksum,
            self.broken + other.broken,
            _once(self.suspects + other.suspects),
            self.left + other.left,
            self.arrays + other.arrays,
            self.varied | other.varied,
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
    """Read the ``bytes`` of records, the ``values`` of floating tensors, or both.

    ``reads`` says which. Without ``elsewhere``, storages that hold none of the tensors are left
    out. So are the regions in ``passed``, which the caller reads: see :func:`completed`. Each of
    the ``ranks`` reads a part, and gets the results of all.

    Raises:
        DamagedError: a file ends before the last byte to read.
    """
    planned, apart = _plan(reader, tensors, reads, elsewhere=elsewhere)
    if planned:  # regions without records may overlap
        allowed = REPEATS * sum(source.size for source in reader.opened)
        refuse_volume(sum(region.nbytes for region in planned), allowed, planned[0].source)
    left = tuple(region for region in planned if region.span in passed)
    regions = [region for region in planned if region.span not in passed] if left else planned
    reader.expect(region.span for region in regions)
    seen = ranks.work(list(in_batches(regions, _cost, BATCH)), partial(_seen, progress), _nbytes)
    all_seen = (Seen(*each) for each in chain.from_iterable(seen))  # tuples, from other ranks
    pairs = zip(regions, all_seen, strict=True)
    return Scan(0, 0, (), apart, left) + _judged(pairs)


def completed(so_far: Scan, seen: Mapping[ByteSpan, Seen]) -> Scan:
    """Complete a scan with the caller's results for the regions that were left to the caller."""
    passed = _judged((region, seen[region.span]) for region in so_far.left)
    return replace(so_far, left=()) + passed


def _judged(pairs: Iterable[tuple[Region, Seen]]) -> Scan:
    broken: list[BrokenRecord] = []
    suspects: list[tuple[Address, TensorRef]] = []
    arrays: list[Region] = []
    varied: list[Address] = []
    records = without = 0
    for region, seen in pairs:
        record = region.record
        if record:
            records += 1
            without += record.crc is None
        if record and record.crc is not None and seen.crc != record.crc:
            names = tuple(format_address(address) for address, _ in region.tensors)
            broken.append(
                BrokenRecord(
                    record.name, record.nbytes, record.crc, seen.crc, names, region.source.path
                )
            )
        if region.test and not seen.is_finite:
            suspects += region.tensors
        if seen.is_array:
            arrays.append(region)
        if seen.is_varied and _is_one_tensor(region):
            varied.append(region.tensors[0][0])
    return Scan(
        records,
        without,
        tuple(broken),
        _once(suspects),
        arrays=tuple(arrays),
        varied=frozenset(varied),
    )


def _is_one_tensor(region: Region) -> bool:
    """Return whether the bytes of a region are the values of one tensor, and nothing else."""
    if len(region.tensors) != 1 or len(region.tensors[0][1].chunks) != 1:
        return False
    chunk = region.tensors[0][1].chunks[0]
    return chunk.span.nbytes == region.nbytes and chunk.is_contiguous


def _once(tensors: Iterable[tuple[Address, TensorRef]]) -> Tensors:
    """Return each tensor once; one of several chunks is in several regions."""
    return tuple(dict(tensors).items())


# ------------------------------------------------------------------------------------------- plan


def _plan(
    reader: TensorReader,
    tensors: Mapping[Address, TensorRef],
    reads: frozenset[str],
    *,
    elsewhere: bool,
) -> tuple[list[Region], Tensors]:
    """Return the regions to read, in the order of the files, and tensors to test one by one."""
    held: dict[ByteSpan, list[_Held]] = {}
    apart: list[tuple[Address, TensorRef]] = []
    indexes = {source: _RecordIndex(source) for source in reader.opened}
    for address, ref in tensors.items():
        places = _places(ref, indexes)
        for place, chunk in zip(places, ref.chunks, strict=False):
            held.setdefault(place, []).append(_Held(address, ref, chunk.span.offset))
        if not places and ref.dtype.is_floating:
            apart.append((address, ref))
    records = {span: each for index in indexes.values() for span, each in index.each}
    for span, each in records.items():
        if span not in held and (elsewhere or not is_storage(each)):
            held[span] = []
    regions = []
    for span, group in sorted(held.items(), key=_in_files):
        source, offset, nbytes = span
        record = None
        if BYTES in reads and not source.is_computed:
            record = records.get(span) or indexes[source].around(offset, nbytes)
        test = _common_test(offset, group) if VALUES in reads else None
        if test is None and VALUES in reads:
            apart += [(address, ref) for address, ref, _ in group if ref.dtype.is_floating]
        if record is not None or test is not None:
            pairs = tuple([(address, ref) for address, ref, _ in group])
            regions.append(Region(source, offset, nbytes, record, pairs, test))
    return regions, _once(apart) if VALUES in reads else ()


class _Held(NamedTuple):
    """A tensor, and the place of one of its chunks."""

    address: Address
    ref: TensorRef
    offset: int


def _in_files(item: tuple[ByteSpan, object]) -> tuple[str, int, int]:
    """Return the key that sorts runs of bytes by source and by offset."""
    source, offset, nbytes = item[0]
    return source.name, offset, nbytes


class _RecordIndex:
    """An index of the records of a source, searched by the bytes that they hold."""

    def __init__(self, source: Source) -> None:
        self._records = sorted(checksummed_records(source), key=_OFFSET)
        self._spans = [ByteSpan(source, each.offset, each.nbytes) for each in self._records]
        self._starts = list(map(_OFFSET, self._records))

    @property
    def each(self) -> Iterator[tuple[ByteSpan, Checksummed]]:
        """The records, with the places of their bytes."""
        return zip(self._spans, self._records, strict=True)

    def around(self, offset: int, nbytes: int) -> Checksummed | None:
        """Return the record that holds the bytes."""
        nth = self._nth(offset, nbytes)
        return self._records[nth] if nth >= 0 else None

    def place(self, span: ByteSpan) -> ByteSpan:
        """Return the bytes of the record that holds a span; the span where none does."""
        nth = self._nth(span.offset, span.nbytes)
        return self._spans[nth] if nth >= 0 else span

    def _nth(self, offset: int, nbytes: int) -> int:
        nth = bisect_right(self._starts, offset) - 1
        if nth < 0:
            return nth
        _, begin, length = self._spans[nth]
        return nth if offset + nbytes <= begin + length else -1


_OFFSET = attrgetter("offset")


def _places(ref: TensorRef, indexes: Mapping[Source, _RecordIndex]) -> list[ByteSpan]:
    """Return the runs of bytes in which the chunks are read: their records, or their own spans.

    The list is empty if a chunk is in none of the sources. What is computed is in itself.
    """
    places = []
    for span, *_ in ref.chunks:
        if span.source.is_computed:
            places.append(span)
        elif span.source in indexes:
            places.append(indexes[span.source].place(span))
        else:
            return []
    return places


def _common_test(offset: int, group: Sequence[_Held]) -> FiniteTest | None:
    """Return a test for all values of a region, if they have one dtype and are aligned to it."""
    kind = None
    for _, ref, at in group:
        if ref.dtype.is_floating:
            own = ref.dtype, ref.byteorder
            if own != (kind or own) or (at - offset) % ref.dtype.itemsize:
                return None
            kind = own
    return finite_test(*kind) if kind else None


# ---------------------------------------------------------------------------------------- reading


Batch = list[Region]


def _cost(region: Region) -> int:
    return region.nbytes + REGION_COST


def _nbytes(batch: Batch) -> int:
    return sum(map(_cost, batch))


def _seen(progress: Progress, batches: Sequence[Batch]) -> list[list[Seen]]:
    """Read the batches in threads; return the results of each."""
    seen: list[list[Seen]] = []
    announce(progress, sum(region.nbytes for batch in batches for region in batch))
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(_read_batch, batches)
        for batch, found in zip(batches, results, strict=True):
            progress(sum(region.nbytes for region in batch))
            seen.append(found)
    return seen


def _read_batch(batch: Batch) -> list[Seen]:
    """Read regions in their order, small ones together."""
    seen: list[Seen] = []
    for window in windows(region.span for region in batch):
        own = batch[len(seen) : len(seen) + len(window.places)]
        seen += _read_window(window, own) if len(own) > 1 else [_read(*own)]
    return seen


def _read_window(window: Window, regions: Sequence[Region]) -> list[Seen]:
    """Do for many small regions of a file at once what :func:`_read` does for one."""
    block = room()[: window.nbytes]
    window.source.fill(block, window.offset)
    values = [Values()] * len(regions)
    tests: dict[FiniteTest, list[int]] = {}
    for at, region in enumerate(regions):
        if region.test is not None:
            tests.setdefault(region.test, []).append(at)
    for test, own in tests.items():
        found = test.of_each(block, [window.places[at] for at in own])
        for at, each in zip(own, found, strict=True):
            values[at] = each
    return [
        Seen(
            region.nbytes,
            crc32(block[start:stop]) if region.record and region.record.crc is not None else 0,
            is_finite,
            is_varied=is_varied,
        )
        for region, (start, stop), (is_finite, is_varied) in zip(
            regions, window.places, values, strict=True
        )
    ]


def _read(region: Region) -> Seen:
    """Compute the checksum of a region that has one, and test whether all its values are finite."""
    has_crc = region.record is not None and region.record.crc is not None
    crc, is_finite, at, end = 0, True, region.offset, region.offset + region.nbytes
    is_array = False
    while at < end:
        block = room()[: min(BLOCK, end - at)]
        region.source.fill(block, at)
        if at == region.offset and region.record is not None and not region.source.is_near:
            is_array = values_at(bytes(block[:HEAD_BYTES])) is not None
        crc = crc32(block, crc) if has_crc else 0
        if region.test is not None and is_finite:
            is_finite = region.test(block)
        at += len(block)
    return Seen(region.nbytes, crc, is_finite, is_array)

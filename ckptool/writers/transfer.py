"""The transfer of values to an output: each byte is read once, tested, maybe cast, and written.

The offsets are known beforehand, so a few threads can each take one part after the other from its
reading to its writing, while the part is in the CPU's cache. So the checksum and the test for
non-finite values cost no second trip to memory. Memory does not grow with the tensors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate

from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.process.progress import Progress, announce, no_progress
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.tensors.blocks import Part, bytes_of, in_order, numpy_dtype, parts, room
from ckptool.tensors.casting import Casting, Losses, converted, side_by_side
from ckptool.tensors.crc import Seen, crc32
from ckptool.tensors.finite import FiniteTest, finite_test
from ckptool.tensors.mean import Mean
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.whole_file import PartialFile
from ckptool.writers.packs import Pack, is_small, recipe_of, unpack
from ckptool.writers.values import Account, WrittenRun


class Move(NamedTuple):
    """A tensor, and the offset of its values in the output."""

    name: str  # for the statistics
    ref: TensorRef
    offset: int


class Moved(NamedTuple):
    """The result of a move."""

    run: WrittenRun
    is_made: bool  # differs from the bytes read: a cast, or values in another order


def to_read_back(moved: Iterable[Moved]) -> tuple[WrittenRun, ...]:
    """Return the runs whose values were cast or reordered."""
    return tuple(run for run, is_made in moved if is_made)


def passed(tensors: Iterable[TensorRef]) -> frozenset[ByteSpan]:
    """Return the runs that the statistics will cover when these tensors have been moved."""
    runs = {span for ref in tensors for span in _runs(ref)}
    means = (span.source for span in runs if isinstance(span.source, Mean))
    return frozenset(runs).union(*(mean.plain_spans for mean in means))


def _runs(ref: TensorRef) -> tuple[ByteSpan, ...]:
    """Return the runs of bytes that are the values, in their order; none if they are in another."""
    if len(ref.chunks) == 1:  # as mostly
        chunk = ref.chunks[0]
        is_run = chunk.span.nbytes and not ref.lazy and chunk.is_contiguous
        return (chunk.span,) if is_run else ()
    return tuple(c.span for c in ref.chunks if c.span.nbytes) if _is_of_runs(ref) else ()


def _is_of_runs(ref: TensorRef) -> bool:
    return not ref.lazy and in_order(ref) and all(chunk.is_contiguous for chunk in ref.chunks)


def _is_copied(ref: TensorRef) -> bool:
    """Return whether the values are written as they are stored."""
    return _is_of_runs(ref) and (ref.byteorder == "little" or ref.dtype.itemsize == 1)


@dataclass(frozen=True, slots=True)
class Transfer:
    """The reader of values, the casts, the statistics, and the listener to progress."""

    reader: TensorReader
    casting: Casting = field(default_factory=Casting)
    account: Account = field(default_factory=Account)
    progress: Progress = no_progress


def transfer(
    moves: Sequence[Move], how: Transfer, output: PartialFile | None = None
) -> list[Moved]:
    """Write the values in C order, little-endian; without an ``output``, only record statistics.

    Returns:
        The result of each move, in their order.

    Raises:
        DamagedError: a source ends before its last byte.
        OSError: the output cannot be written.
    """
    reader, casting, progress = how.reader, how.casting, how.progress
    announce(progress, sum(move.ref.numel * casting.dtype_of(move.ref).itemsize for move in moves))
    order = _reading_order(moves)
    reader.expect_values(moves[nth].ref for nth in order)
    runs = [_runs(move.ref) for move in moves]
    put = output.patch if output else _put_nowhere

    def take(given: _Given | Pack) -> _Done | _Packed:
        if isinstance(given, Pack):
            seen, writes = unpack(reader, given)
            for offset, piece in writes:
                put(piece, offset)
            return _Packed(given, seen)
        done, data = _made(given)
        put(data, given.offset)
        return done

    if output and moves:
        output.reserve_meanwhile(moves[0].offset, _end(moves, casting))
    given = _given(moves, order, runs, reader, casting, output)
    with closing(side_by_side(take, given, _nbytes)) as results:
        found = _by_move(results, runs, progress)
    return [
        _moved(move, spans, found.get(nth, ()), how)
        for nth, (move, spans) in enumerate(zip(moves, runs, strict=True))
    ]


def _put_nowhere(_data: object, _offset: int) -> None:
    """Write nothing."""


def _by_move(
    results: Iterable[_Done | _Packed], runs: Sequence[Sequence[ByteSpan]], progress: Progress
) -> Mapping[int, Seen | Sequence[_Done]]:
    """Return what was seen of each tensor that was in a pack, and of each run of the others."""
    found: dict[int, Seen | list[_Done]] = {}
    totals: dict[int, list[_Done]] = {}
    for done in results:
        if isinstance(done, _Packed):
            found.update(zip(done.pack.moves, done.seen, strict=True))
            progress(sum(seen.nbytes for seen in done.seen))
            continue
        if done.move not in totals:
            totals[done.move] = [_Done(done.move)] * (len(runs[done.move]) or 1)
        of_runs = totals[done.move]
        of_runs[done.run] = of_runs[done.run].then(done)
        progress(done.written.nbytes)
    return found | totals


def _moved(
    move: Move, spans: Sequence[ByteSpan], found: Seen | Sequence[_Done], how: Transfer
) -> Moved:
    """Return the result of a move, and add to the statistics."""
    account, casting = how.account, how.casting
    if isinstance(found, Seen):
        account.seen[spans[0]] = found
        account.seen |= _seen_in(spans[0].source)
        return Moved(WrittenRun(move.offset, found.nbytes, found.crc), is_made=False)
    account.seen.update(zip(spans, (each.read for each in found), strict=False))
    for span in spans:
        account.seen |= _seen_in(span.source)
    total = reduce(_Done.then, found, _Done(0))
    if total.lost:
        account.losses[move.name] = total.lost
    written = WrittenRun(move.offset, total.written.nbytes, total.written.crc)
    return Moved(written, casting.is_cast(move.ref) or not _is_copied(move.ref))


def _reading_order(moves: Sequence[Move]) -> Sequence[int]:
    """Return the order in which tensors are read: that of the output, or else of the sources.

    What comes from afar is fetched ahead in large pieces. If names had another order than the
    bytes, pieces would wait in memory until their tensors are read, and leave no room for others.
    """
    firsts = [move.ref.chunks[0].span if move.ref.chunks else None for move in moves]
    if all(first is None or first.source.is_near for first in firsts):
        return range(len(moves))
    places = [(first.source.name, first.offset) if first else ("", 0) for first in firsts]
    return sorted(range(len(moves)), key=places.__getitem__)


def _seen_in(source: Source) -> dict[ByteSpan, Seen]:
    """Return the checksums of the runs that a mean read."""
    if not isinstance(source, Mean):
        return {}
    spans = source.plain_spans
    return {
        ref.chunks[0].span: found for ref, found in source.seen() if ref.chunks[0].span in spans
    }


class _Given(NamedTuple):
    """A part of a tensor, with its offset in the output and the dtype of its cast."""

    move: int  # its index
    run: int  # the index of the run that the part belongs to, among those of the tensor
    part: Part
    offset: int  # in the output
    wanted: DType | None  # None: the values keep their dtype
    test: FiniteTest | None


class _Done(NamedTuple):
    move: int
    run: int = 0
    read: Seen = Seen()
    written: Seen = Seen()
    lost: Losses = Losses()

    def then(self, other: _Done) -> _Done:
        """Combine two adjacent parts of one move; the run is the first's."""
        if not self.read.nbytes:
            return other
        read = self.read.then(other.read)
        as_it_was = self.written is self.read and other.written is other.read
        written = read if as_it_was else self.written.then(other.written)
        return _Done(self.move, self.run, read, written, self.lost + other.lost)


class _Packed(NamedTuple):
    pack: Pack
    seen: list[Seen]  # of each of its tensors


def _end(moves: Sequence[Move], casting: Casting) -> int:
    """Return the offset behind the last value."""
    return moves[-1].offset + casting.nbytes_of(moves[-1].ref)


def _given(
    moves: Sequence[Move],
    order: Sequence[int],
    runs: Sequence[Sequence[ByteSpan]],
    reader: TensorReader,
    casting: Casting,
    output: PartialFile | None,
) -> Iterator[_Given | Pack]:
    """Yield the parts of all tensors, after space for them is prepared in the output.

    Small ones that are copied are in packs.
    """
    end = _end(moves, casting) if moves else 0
    last = -1
    pack: Pack | None = None
    for nth in order:
        _, ref, start = moves[nth]
        written = casting.dtype_of(ref)
        test = finite_test(ref.dtype, ref.byteorder)
        spans = runs[nth]
        recipe = recipe_of(spans[0]) if spans else None
        is_packed = (
            len(spans) == 1
            and is_small(spans[0], recipe)
            and written is ref.dtype
            and _is_copied(ref)
        )
        if pack and not (is_packed and pack.admits(start, test, recipe)):
            yield pack
            pack = None
        if output and not pack:
            if nth < last:
                output.go_back(start)
            output.make_way(start, end)
        last = nth
        if is_packed:
            pack = pack or Pack([], [], [], test, recipe)
            pack.moves.append(nth)
            pack.spans.append(spans[0])
            pack.offsets.append(start)
            continue
        wanted = written if written is not ref.dtype else None
        at, taken = start, 0
        ends = [*accumulate(span.nbytes for span in spans)]
        for part in parts(reader, ref):
            nbytes = part.nbytes // ref.dtype.itemsize * written.itemsize
            if output:
                output.make_way(at, end)
            yield _Given(nth, bisect_right(ends, taken), part, at, wanted, test)
            at, taken = at + nbytes, taken + part.nbytes
    if pack:
        yield pack


def _nbytes(given: _Given | Pack) -> int:
    return given.nbytes if isinstance(given, Pack) else given.part.nbytes


def _made(given: _Given) -> tuple[_Done, memoryview]:
    """Return the bytes to write for a part, in this thread's buffer: valid until the next part."""
    values = given.part.values(room())
    as_read = bytes_of(values)
    nbytes, crc = len(as_read), crc32(as_read)
    if given.wanted is not None:
        made, lost, were_finite = converted(values, numpy_dtype(given.wanted))
        data = bytes_of(made)
        written = Seen(len(data), crc32(data))
        was = Seen(nbytes, crc, were_finite)
        return _Done(given.move, given.run, was, written, lost), data
    read = Seen(nbytes, crc, given.test is not None and given.test(as_read))
    if values.dtype.byteorder != ">":
        return _Done(given.move, given.run, read, read), as_read
    data = bytes_of(values.byteswap())
    return _Done(given.move, given.run, read, Seen(nbytes, crc32(data))), data

"""The transfer of values to an output: each byte is read once, tested, maybe cast, and written.

The offsets are known beforehand, so a few threads can each take one part after the other from its
reading to its writing, while the part is in the CPU's cache. So the checksum and the test for
non-finite values cost no second trip to memory. Memory does not grow with the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import NamedTuple

from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.process.progress import Progress, announce, no_progress
from ckptool.sources.base import ByteSpan
from ckptool.tensors.blocks import Part, bytes_of, numpy_dtype, parts, room
from ckptool.tensors.casting import Casting, Losses, converted, side_by_side
from ckptool.tensors.crc import Seen, crc32
from ckptool.tensors.statistics import FiniteTest, finite_test
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.whole_file import PartialFile
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
    return frozenset(ref.chunks[0].span for ref in tensors if _is_run(ref))


def _is_run(ref: TensorRef) -> bool:
    """Return whether the values are bytes of a file in their order."""
    in_order = len(ref.chunks) == 1 and ref.chunks[0].is_contiguous and not ref.lazy
    return in_order and ref.chunks[0].span.nbytes > 0


def transfer(
    moves: Sequence[Move],
    reader: TensorReader,
    casting: Casting,
    account: Account,
    output: PartialFile | None = None,
    progress: Progress = no_progress,
) -> list[Moved]:
    """Write the values in C order, little-endian; without an ``output``, only record statistics.

    Returns:
        The result of each move, in their order.

    Raises:
        DamagedError: a source ends before its last byte.
        OSError: the output cannot be written.
    """
    announce(progress, sum(move.ref.numel * casting.dtype_of(move.ref).itemsize for move in moves))
    totals = [_Done(at) for at in range(len(moves))]

    def take(given: _Given) -> _Done:
        done, data = _made(given)
        if output:
            output.patch(data, given.offset)
        return done

    given = _given(moves, reader, casting, output)
    with closing(side_by_side(take, given, _nbytes)) as results:
        for done in results:
            totals[done.move] = totals[done.move].then(done)
            progress(done.written.nbytes)
    for move, total in zip(moves, totals, strict=True):
        if total.lost:
            account.losses[move.name] = total.lost
        if _is_run(move.ref):
            account.seen[move.ref.chunks[0].span] = total.read
    return [
        Moved(
            WrittenRun(move.offset, total.written.nbytes, total.written.crc),
            casting.is_cast(move.ref) or not move.ref.is_stored_plainly,
        )
        for move, total in zip(moves, totals, strict=True)
    ]


class _Given(NamedTuple):
    """A part of a tensor, with its offset in the output and the dtype of its cast."""

    move: int  # its index
    part: Part
    offset: int  # in the output
    wanted: DType | None  # None: the values keep their dtype
    test: FiniteTest | None


class _Done(NamedTuple):
    move: int
    read: Seen = Seen()
    written: Seen = Seen()
    lost: Losses = Losses()

    def then(self, other: _Done) -> _Done:
        """Combine two adjacent parts of one move."""
        if not self.read.nbytes:
            return other
        read = self.read.then(other.read)
        as_it_was = self.written is self.read and other.written is other.read
        written = read if as_it_was else self.written.then(other.written)
        return _Done(self.move, read, written, self.lost + other.lost)


def _given(
    moves: Sequence[Move], reader: TensorReader, casting: Casting, output: PartialFile | None
) -> Iterator[_Given]:
    """Yield the parts of all tensors, after space for them is prepared in the output."""
    end = moves[-1].offset + casting.nbytes_of(moves[-1].ref) if moves else 0
    for nth, (_, ref, start) in enumerate(moves):
        written = casting.dtype_of(ref)
        wanted = written if casting.is_cast(ref) else None
        test = _finite_test(ref.dtype, ref.byteorder)
        at = start
        for part in parts(reader, ref):
            nbytes = part.nbytes // ref.dtype.itemsize * written.itemsize
            if output:
                output.make_way(at, end)
            yield _Given(nth, part, at, wanted, test)
            at += nbytes


_finite_test: Callable[[DType, str], FiniteTest | None] = cache(finite_test)


def _nbytes(given: _Given) -> int:
    return given.part.nbytes


def _made(given: _Given) -> tuple[_Done, memoryview]:
    """Return the bytes to write for a part, in this thread's buffer: valid until the next part."""
    values = given.part.values(room())
    as_read = bytes_of(values)
    nbytes, crc = len(as_read), crc32(as_read)
    if given.wanted is not None:
        made, lost, were_finite = converted(values, numpy_dtype(given.wanted))
        data = bytes_of(made)
        written = Seen(len(data), crc32(data))
        return _Done(given.move, Seen(nbytes, crc, were_finite), written, lost), data
    read = Seen(nbytes, crc, given.test is not None and given.test(as_read))
    if values.dtype.byteorder != ">":
        return _Done(given.move, read, read), as_read
    data = bytes_of(values.byteswap())
    return _Done(given.move, read, Seen(nbytes, crc32(data))), data

"""Values on their way into an output: each byte is read once, looked at, maybe cast, and written.

The places are known beforehand, so that a few threads can take one part after the other from its
reading to its writing, while it is near the processor: the checksum and the look at the values cost
no second trip to memory. Memory does not grow with the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from ckptool.casting import Casting, Losses, converted, room, side_by_side
from ckptool.crc import Seen, crc32
from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.numerics import (
    FiniteTest,
    Part,
    Progress,
    bytes_of,
    finite_test,
    no_progress,
    numpy_dtype,
    parts,
)
from ckptool.tree import ByteSpan, TensorRef
from ckptool.writers.base import PartialFile
from ckptool.writers.values import Run


class Move(NamedTuple):
    """A tensor, and where its values begin in the output."""

    name: str  # for the account
    ref: TensorRef
    offset: int


@dataclass(slots=True)
class Account:
    """What has been seen on the way."""

    losses: dict[str, Losses] = field(default_factory=dict)  # of the tensors that lost something
    seen: dict[ByteSpan, Seen] = field(default_factory=dict)  # of the runs that were read


class Moved(NamedTuple):
    """What a move has written."""

    run: Run
    is_made: bool  # not as it was read: a cast, or values that lay otherwise


def to_read_back(moved: Iterable[Moved]) -> tuple[Run, ...]:
    """Of what was written, that which is not as it was read."""
    return tuple(run for run, is_made in moved if is_made)


def passed(tensors: Iterable[TensorRef]) -> frozenset[ByteSpan]:
    """The runs of bytes of which an account will tell, when these tensors have been moved."""
    return frozenset(ref.chunks[0].span for ref in tensors if _is_run(ref))


def _is_run(ref: TensorRef) -> bool:
    """Whether the values are bytes of a file in their order."""
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
    """Write the values in C order, little-endian; without an ``output``, only tell of them.

    Returns:
        What was written, for each of the moves.

    Raises:
        DamagedError: a source ends before.
        OSError: the output cannot be written.
    """
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
        if any(total.lost):
            account.losses[move.name] = total.lost
        if _is_run(move.ref):
            account.seen[move.ref.chunks[0].span] = total.read
    return [
        Moved(
            Run(move.offset, total.written.nbytes, total.written.crc),
            casting.is_cast(move.ref) or not move.ref.is_stored_plainly,
        )
        for move, total in zip(moves, totals, strict=True)
    ]


class _Given(NamedTuple):
    """A part of a tensor, and what becomes of it."""

    move: int  # which
    part: Part
    offset: int  # in the output
    wanted: DType | None  # None: they keep their type
    test: FiniteTest | None


class _Done(NamedTuple):
    move: int
    read: Seen = Seen()
    written: Seen = Seen()
    lost: Losses = Losses()

    def then(self, other: _Done) -> _Done:
        """Of two parts of one move, one behind the other."""
        if not self.read.nbytes:
            return other
        read = self.read.then(other.read)
        as_it_was = self.written is self.read and other.written is other.read
        written = read if as_it_was else self.written.then(other.written)
        return _Done(self.move, read, written, self.lost + other.lost)


def _given(
    moves: Sequence[Move], reader: TensorReader, casting: Casting, output: PartialFile | None
) -> Iterator[_Given]:
    """The parts of all tensors, with room for them in the output."""
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
    """What is written for a part, in memory of this thread until the next is made."""
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

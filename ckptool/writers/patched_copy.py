"""A copy of a checkpoint with other values in some tensors and every other byte unchanged.

The kernel copies the file, except for runs that are overwritten as a whole. The values of the
target tensors are written in their places, cast to the target's dtype and laid out in its strides.
No pickle is changed: the optimizer, the epoch and instances of classes that are not installed stay
as they were. If a container keeps checksums or a header of its bytes, its row in ``containers.py``
updates them.

The kernel also copies values that have the target's dtype and order; they are compared with their
source afterwards. All other values are made here, piece by piece, in several threads, each once.
When a piece is written, its checksum and the losses of its cast are recorded. The copy is read back
and compared with that checksum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from math import prod
from operator import itemgetter
from typing import TYPE_CHECKING

from ckptool.dtypes import DType
from ckptool.errors import UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.process.progress import Progress, no_progress
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.local import LocalFile
from ckptool.tensors.blocks import (
    BLOCK,
    REAL,
    bytes_of,
    cast,
    chunk_values,
    element_dtype,
    room,
    strided,
)
from ckptool.tensors.casting import Losses, converted, side_by_side
from ckptool.tensors.crc import crc32
from ckptool.tree.geometry import contiguous_strides, joined_runs
from ckptool.tree.nodes import Chunk, TensorRef, longest_axis, narrowed
from ckptool.writers.files.runs import Run
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.values import Account

if TYPE_CHECKING:
    from ckptool.tensors.blocks import Array

OTHERWISE = "ckptool extract-ema writes the averaged weights as a file of their own"
MAX_PLACES = 1 << 20  # elements of an interleaved view that are examined one by one
SCALES = "float8_e8m0fnu"  # powers of two without zero or sign: other numbers make no sense there
PIECE = 1 << 20  # bytes of a tensor that are rearranged at a time, on either side


class Patch(NamedTuple):
    """Values that move from one tensor to another; there is at least one value."""

    name: str  # of the target; unique in a promotion
    target: TensorRef
    source: TensorRef

    @property
    def is_plain(self) -> bool:
        """Whether the move is a copy of bytes: same dtype, same order of elements in memory."""
        return (
            not self.is_cast
            and self.target.byteorder == self.source.byteorder
            and not self.source.lazy
            and not self.target.lazy
            and (self._is_run_to_run or all(chunk.strides == (1,) for chunk in self.aligned))
        )

    @property
    def _is_run_to_run(self) -> bool:
        """Whether both are in C order, without a look at each dimension: as mostly."""
        ours, theirs = self.target.chunks[0], self.source.chunks[0]
        return ours.strides == theirs.strides == contiguous_strides(ours.shape)

    @property
    def is_cast(self) -> bool:
        """Whether the values change their dtype."""
        return self.target.dtype is not self.source.dtype

    @property
    def place(self) -> ByteSpan:
        """The bytes of the file from the target's first element to its last."""
        return self.target.chunks[0].span

    @property
    def fills_its_place(self) -> bool:
        """Whether no other bytes lie between the target's elements."""
        return self.place.nbytes == self.target.numel * self.target.dtype.itemsize

    @property
    def aligned(self) -> tuple[Chunk, Chunk]:
        """Target and source, with dimensions in the order in which the target's elements lie.

        Adjacent dimensions that are contiguous in both are joined, so equal orders give one run.
        """
        ours, theirs = self.target.chunks[0], self.source.chunks[0]
        dims = zip(ours.shape, ours.strides, theirs.strides, strict=True)
        shape, *strides = zip(*_joined(dims), strict=True)
        return Chunk(ours.span, (), shape, strides[0]), Chunk(theirs.span, (), shape, strides[1])


Dim = tuple[int, int, int]  # size, and the strides of two views


def _joined(dims: Iterable[Dim]) -> list[Dim]:
    """Sort by descending stride of the first view; join what can be joined; return at least one."""
    joined: list[Dim] = []
    for size, mine, yours in sorted(dims, key=itemgetter(1), reverse=True):
        if size > 1:
            runs_on = joined and joined[-1][1:] == (mine * size, yours * size)
            whole = size * joined.pop()[0] if runs_on else size
            joined.append((whole, mine, yours))
    return joined or [(1, 1, 1)]


def check_patch(patch: Patch, file: Source) -> None:
    """Refuse a patch that cannot be carried out exactly.

    Raises:
        UnsupportedError: no values, several blocks, or a conversion other than a cast of real
            numbers.
    """
    reason = _obstacle(patch.target, patch.source, file)
    if reason:
        raise UnsupportedError(reason, address=patch.name, hint=OTHERWISE)


def _obstacle(target: TensorRef, source: TensorRef, file: Source) -> str:
    if any(len(ref.chunks) != 1 or ref.quantizer is not None for ref in (target, source)):
        return "only tensors with plain stored values move"
    chunk = target.chunks[0]
    if chunk.span.source is not file or target.lazy or _shares_memory(chunk):
        return (
            "the tensor of the model has no bytes of its own in the file (encoded in the pickle, "
            "compressed in the archive, conjugated or expanded)"
        )
    if target.dtype is not source.dtype and not _casts(source.dtype, target.dtype):
        return f"{source.dtype} values do not go into a {target.dtype} slot"
    return ""


def _shares_memory(chunk: Chunk) -> bool:
    """Return whether two elements of a view are one in memory, as after ``expand``."""
    reach, clear = 0, True
    dimensions = zip(chunk.strides, chunk.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dimensions if size > 1):
        clear, reach = clear and stride > reach, reach + stride * (size - 1)
    return not clear and not _all_places_differ(chunk)


def _all_places_differ(chunk: Chunk) -> bool:
    """Examine each element of the rare views whose dimensions interleave; False for large ones."""
    places = {0}
    count = 1
    for size, stride in zip(chunk.shape, chunk.strides, strict=True):
        count *= size
        if count > MAX_PLACES or len(places) * size > MAX_PLACES:
            return False
        places = {place + i * stride for place in places for i in range(size)}
    return len(places) == count


def _casts(source: DType, target: DType) -> bool:
    """Return whether values of one dtype are cast to the other, as ``copy_`` does it silently."""
    are_numbers = source.numpy is not None and target.numpy is not None
    return are_numbers and {source.kind, target.kind} <= REAL and target.name != SCALES


# ----------------------------------------------------------------------------------------- writing


def moves(patches: Iterable[Patch], reader: TensorReader) -> Iterator[Run]:
    """Yield the runs of bytes that become targets as they are, and the offsets of these."""
    for patch in patches:
        if patch.is_plain:
            span = patch.source.chunks[0].span
            reader.admit(span.source)
            yield Run(span, patch.place.offset)


def put(
    output: PartialFile,
    patches: Sequence[Patch],
    reader: TensorReader,
    account: Account,
    shift: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Make the values that no move of bytes gives, and overwrite their targets.

    The values of the copy lie ``shift`` bytes further than those of the file.
    """
    for piece in _made((patch for patch in patches if not patch.is_plain), reader):
        account.made[piece.name] = crc32(bytes_of(piece.values), account.made.get(piece.name, 0))
        _count_losses(piece, account)
        at = piece.place.span.offset + shift
        output.patch(_content(output, piece, at), at)
        progress(piece.place.span.nbytes)


def _content(output: PartialFile, piece: _Piece, at: int) -> memoryview | bytearray:
    """Return the new bytes of a piece's place."""
    if piece.place.is_contiguous:
        return bytes_of(piece.values)
    return laid(output.read(at, piece.place.span.nbytes), piece.place, piece.values)


def count_losses(patches: Iterable[Patch], reader: TensorReader, account: Account) -> None:
    """Count the losses as ``put`` does, without writing."""
    for piece in _made((patch for patch in patches if patch.is_cast), reader):
        _count_losses(piece, account)


def _count_losses(piece: _Piece, account: Account) -> None:
    account.losses[piece.name] = account.losses.get(piece.name, Losses()) + piece.lost


def overwritten(patches: Iterable[Patch]) -> list[ByteSpan]:
    """Return the runs of the file of which :func:`put` leaves no byte, in order and disjoint."""
    places = [patch.place for patch in patches if patch.fills_its_place]
    runs = joined_runs((place.offset, place.offset + place.nbytes) for place in places)
    return [ByteSpan(places[0].source, start, end - start) for start, end in runs]


def check(
    output: PartialFile,
    patches: Sequence[Patch],
    reader: TensorReader,
    account: Account,
    shift: int = 0,
) -> None:
    """Read the targets back: compare made values by checksum, and moved values with their source.

    Raises:
        DamagedError: a byte differs.
    """
    with LocalFile(output.path) as written:
        plain = [patch for patch in patches if patch.is_plain]
        blocks = ((patch, at) for patch in plain for at in range(0, patch.place.nbytes, BLOCK))
        same = partial(_is_same, written, reader, shift)
        for _ in side_by_side(same, blocks, lambda block: min(BLOCK, block[0].place.nbytes)):
            pass
        for patch in patches:
            if not patch.is_plain:
                found = _checksum(written, patch, shift)
                expect(found == account.made[patch.name], patch.name, output.path)


def _is_same(
    written: LocalFile, reader: TensorReader, shift: int, block: tuple[Patch, int]
) -> None:
    """Compare a block of a target, from an offset in it on, with its source."""
    patch, start = block
    count = min(BLOCK, patch.place.nbytes - start)
    wanted = reader.read(patch.source.chunks[0].span, start, count)
    found = written.read(patch.place.offset + shift + start, count)
    expect(found == wanted, patch.name, written.path)


def _checksum(written: Source, patch: Patch, shift: int) -> int:
    """Return the checksum of the target's values in the copy, computed as :func:`put` does it."""
    kind, crc = element_dtype(patch.target), 0
    for ours, _ in pieces(patch):
        data = written.read(ours.span.offset + shift, ours.span.nbytes)
        crc = crc32(bytes_of(strided(data, ours, kind)), crc)
    return crc


# ------------------------------------------------------------------------------------------ pieces


class _Piece(NamedTuple):
    """A part of a target, and the values for it."""

    name: str
    place: Chunk
    values: Array  # in its shape
    lost: Losses


class Parts(NamedTuple):
    """A part of a target, and the same part of its source."""

    patch: Patch
    ours: Chunk
    theirs: Chunk


def _made(patches: Iterable[Patch], reader: TensorReader) -> Iterator[_Piece]:
    """Yield the values of all targets, in their order; several threads make them."""
    parts = (Parts(patch, *both) for patch in patches for both in pieces(patch))
    return side_by_side(partial(_piece, reader), parts, _nbytes)


def _nbytes(parts: Parts) -> int:
    patch, ours, theirs = parts
    return max(ours.span.nbytes, prod(theirs.shape) * patch.source.dtype.itemsize)


def _piece(reader: TensorReader, parts: Parts) -> _Piece:
    patch, ours, theirs = parts
    return _Piece(patch.name, ours, *values_for(patch, reader, theirs))


def values_for(patch: Patch, reader: TensorReader, theirs: Chunk) -> tuple[Array, Losses]:
    """Return a part of the source in the target's dtype, and the losses of the cast."""
    kind = element_dtype(patch.target)
    if patch.is_cast:
        made = converted(chunk_values(reader, patch.source, theirs, room()), kind)
        return made.values, made.lost
    return cast(chunk_values(reader, patch.source, theirs), kind), Losses()  # another byte order


def laid(there: bytes, ours: Chunk, values: Array) -> bytearray:
    """Return a part of the target with new values; bytes between the elements stay."""
    content = bytearray(there)
    strided(content, ours, values.dtype)[...] = values
    return content


def pieces(patch: Patch, limit: int | None = None) -> Iterator[tuple[Chunk, Chunk]]:
    """Yield parts of the target, each with the same part of the source.

    A part has at most ``limit`` bytes, by default ``PIECE``. A part of the target lies together in
    the file; the same part of a source in another order may be scattered.
    """
    widths = patch.target.dtype.itemsize, patch.source.dtype.itemsize
    yield from _halved(*patch.aligned, widths, limit or PIECE)


def _halved(
    ours: Chunk, theirs: Chunk, widths: tuple[int, int], limit: int
) -> Iterator[tuple[Chunk, Chunk]]:
    if max(ours.span.nbytes, prod(ours.shape) * max(widths)) <= limit:
        yield ours, theirs
        return
    axis = longest_axis(ours)
    size = ours.shape[axis]
    for part in (range(size // 2), range(size // 2, size)):
        mine, yours = (
            narrowed(chunk, axis, part, width)
            for chunk, width in zip((ours, theirs), widths, strict=True)
        )
        yield from _halved(mine, yours, widths, limit)

"""A copy of a checkpoint in which some tensors have other values, and every other byte is the same.

The file is copied by the kernel and the target tensors' bytes are overwritten in place, cast to the
slot's type and laid in the slot's strides. No pickle is touched: optimizer, epoch and instances of
classes that nobody has installed stay as they were. What a container keeps about its bytes
(checksums, a header) is the business of its row in ``containers.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

from ckptool.casting import Losses, count_losses
from ckptool.dtypes import DType
from ckptool.errors import UnsupportedError
from ckptool.formats.base import SourceFile, TensorReader
from ckptool.numerics import (
    BLOCK,
    REAL,
    Progress,
    cast,
    chunk_values,
    element_dtype,
    no_progress,
    strided,
)
from ckptool.tree import ByteSpan, Chunk, TensorRef, extent, longest_axis, narrowed
from ckptool.writers.base import PartialFile, expect

OTHERWISE = "ckptool extract-ema writes the averaged weights as a file of their own"
MAX_PLACES = 1 << 20  # elements of an interleaved view that are looked at one by one
SCALES = "float8_e8m0fnu"  # powers of two without zero or sign: other numbers make no sense there
PIECE = 2 << 20  # bytes of a tensor that are rearranged at a time, on either side


class Patch(NamedTuple):
    """Values that move from one tensor to another."""

    name: str  # of the target, for messages
    target: TensorRef
    source: TensorRef

    @property
    def is_plain(self) -> bool:
        """Whether it is a move of bytes: same type, same order of elements in memory."""
        return (
            self.target.dtype is self.source.dtype
            and self.target.byteorder == self.source.byteorder
            and not self.source.lazy
            and not self.target.lazy
            and _in_one_order(self.target.chunks[0], self.source.chunks[0])
        )


def _in_one_order(ours: Chunk, theirs: Chunk) -> bool:
    """Whether the n-th element in memory of one is the n-th of the other, without gaps."""
    same = ours.strides == theirs.strides and extent(ours.shape, ours.strides) == prod(ours.shape)
    return same or (ours.is_contiguous and theirs.is_contiguous)


def check_patch(patch: Patch, path: Path) -> None:
    """Refuse what cannot be moved exactly.

    Raises:
        UnsupportedError: no values, several blocks, or a conversion that is no cast of real
        numbers.
    """
    target, source = patch.target, patch.source
    for ref in (target, source):
        if len(ref.chunks) != 1 or ref.quantizer is not None:
            raise UnsupportedError(
                "only tensors with plain stored values move", address=patch.name, hint=OTHERWISE
            )
    chunk = target.chunks[0]
    if chunk.span.source != path or target.lazy or _shares_memory(chunk):
        raise UnsupportedError(
            "the slot is no run of values in the file of their own (encoded in the pickle, "
            "conjugated or expanded)",
            address=patch.name,
            hint=OTHERWISE,
        )
    if patch.is_plain:
        return
    if target.dtype is not source.dtype and not _casts(source.dtype, target.dtype):
        raise UnsupportedError(
            f"{source.dtype} values do not go into a {target.dtype} slot",
            address=patch.name,
            hint=OTHERWISE,
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
    return are_numbers and {source.kind, target.kind} <= REAL and target.name != SCALES


# ----------------------------------------------------------------------------------------- writing


def put(
    output: PartialFile,
    patches: Sequence[Patch],
    reader: TensorReader,
    shift: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Overwrite the targets in a copy whose values lie ``shift`` bytes further than the file's."""
    for patch in patches:
        if patch.is_plain:
            span = patch.source.chunks[0].span
            output.place(reader, span, patch.target.chunks[0].span.offset + shift, progress)
            continue
        for ours, theirs in pieces(patch):
            at, nbytes = ours.span.offset + shift, ours.span.nbytes
            has_gaps = nbytes > prod(ours.shape) * patch.target.dtype.itemsize
            there = output.read(at, nbytes) if has_gaps else bytes(nbytes)
            output.patch(rearranged(there, reader, patch, ours, theirs), at)
            progress(ours.span.nbytes)


def check(
    output: PartialFile, patches: Sequence[Patch], reader: TensorReader, shift: int = 0
) -> None:
    """Read the targets back and compare them with their sources.

    Raises:
        DamagedError: a byte differs.
    """
    with SourceFile(output.path) as written:
        for patch in patches:
            if patch.is_plain:
                span = patch.target.chunks[0].span
                at = span.offset + shift
                _compare(written, at, span.nbytes, reader, patch.source.chunks[0].span, patch.name)
                continue
            for ours, theirs in pieces(patch):
                found = written.read(ours.span.offset + shift, ours.span.nbytes)
                wanted = rearranged(found, reader, patch, ours, theirs)
                expect(found == wanted, patch.name, output.path)


def _compare(
    written: SourceFile, at: int, nbytes: int, reader: TensorReader, source: ByteSpan, name: str
) -> None:
    for start in range(0, nbytes, BLOCK):
        count = min(BLOCK, nbytes - start)
        found = written.read(at + start, count)
        expect(found == reader.read(source, start, count), name, written.path)


def losses(patch: Patch, reader: TensorReader) -> Losses:
    """What the cast into the slot would cost: values beyond its range, values that become 0."""
    wanted = element_dtype(patch.target)
    total = Losses(0, 0)
    if patch.source.dtype is patch.target.dtype:
        return total
    for _, theirs in pieces(patch):
        total = total + count_losses(chunk_values(reader, patch.source, theirs), wanted)
    return total


# ------------------------------------------------------------------------------------------ pieces


def pieces(patch: Patch, limit: int | None = None) -> Iterator[tuple[Chunk, Chunk]]:
    """(part of the target, the same part of the source), each of at most ``limit`` bytes.

    By default of ``PIECE`` bytes. The target's parts lie together in the file; those of a source
    in another order may lie far apart.
    """
    ours, theirs = patch.target.chunks[0], patch.source.chunks[0]
    widths = patch.target.dtype.itemsize, patch.source.dtype.itemsize
    if _in_one_order(ours, theirs):
        ours, theirs = _flat(ours), _flat(theirs)
    yield from _halved(ours, theirs, widths, limit or PIECE)


def _flat(chunk: Chunk) -> Chunk:
    return Chunk(chunk.span, (0,), (prod(chunk.shape),), (1,))


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


def rearranged(
    there: bytes, reader: TensorReader, patch: Patch, ours: Chunk, theirs: Chunk
) -> bytearray:
    """The bytes ``there`` with the source's values in them: cast, and in the target's strides.

    Bytes between the target's elements stay.
    """
    content = bytearray(there)
    wanted = element_dtype(patch.target)
    strided(content, ours, wanted)[...] = cast(chunk_values(reader, patch.source, theirs), wanted)
    return content

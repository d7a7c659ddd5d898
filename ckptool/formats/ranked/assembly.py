"""Tensors that are assembled from parts in several files.

A part is either a box of the tensor, with an offset in each dimension, as meshes of processes and
distributed checkpoints cut it; or a run of elements of the flattened tensor, as ZeRO and FSDP1 cut
their buffers anywhere. A run is at most ``2 * ndim - 1`` boxes: a piece of a row, whole rows, and a
piece of a row, and so on inside the pieces. So every tensor is made of boxes, which are chunks.

Rules: the parts have one dtype and one byte order, and each element of the tensor is in exactly one
of them. A part that is missing, doubled or of another size is damage, and never filled.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import prod

from ckptool.dtypes import DType
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Chunk, TensorRef, Tree

MAX_STEPS = 1 << 25  # that are always done,
A_STEP = 1 << 9  # or one for so many bytes of the files
A_BOX = 1 << 4  # steps of a box, and the square of its dimensions
Sizes = tuple[int, ...]
FETCH = "fetch the files of all ranks again: one is missing, or is of another save"


class Box(NamedTuple):
    """A part of a tensor: where it begins in each dimension, and its shape."""

    offsets: Sizes
    sizes: Sizes


class Run(NamedTuple):
    """Elements of a flat tensor that follow each other."""

    ref: TensorRef
    start: int
    numel: int


def held_boxes(boxes: Sequence[Box], shape: Sizes, name: str) -> list[Box]:
    """Return the boxes that hold values; together they hold each element of the tensor once.

    Raises:
        DamagedError: the boxes reach out of the tensor, do not cover it, or overlap.
    """
    for box in boxes:
        if not len(box.offsets) == len(box.sizes) == len(shape) or any(
            start + size > whole for start, size, whole in zip(*box, shape, strict=True)
        ):
            raise DamagedError(
                f"the chunk at {list(box.offsets)} reaches out of the tensor", address=name
            )
    # A rank without rows writes an empty chunk, often at the offset of another one.
    held = [box for box in boxes if prod(box.sizes)] or list(dict.fromkeys(boxes))
    covered = sum(prod(box.sizes) for box in held) == prod(shape)
    if not covered or (len(held) == 1 and held[0].sizes != shape):
        said = f"its chunks do not cover its shape {list(shape)}"
        raise DamagedError(said, address=name, hint=FETCH)
    if prod(shape) and not _are_separate(held, len(shape)):
        raise DamagedError("its chunks overlap", address=name, hint=FETCH)
    return held


def from_boxes(
    name: str, shape: Sizes, parts: Iterable[tuple[Box, Tree]], dtype: DType | None = None
) -> TensorRef:
    """Return the tensor whose boxes are ``parts``, each with the values that a file has for it.

    Args:
        name: of the tensor, for messages.
        shape: of the whole tensor.
        parts: the boxes that hold values; see :func:`held_boxes`.
        dtype: the dtype that all parts must have; None: that of the first.

    Raises:
        DamagedError: a part is no tensor of its box's shape, or of another dtype than the rest.
        UnsupportedError: a part is quantized, conjugated or negated.
    """
    first: TensorRef | None = None
    chunks = []
    for box, part in parts:
        place = f"the chunk at {list(box.offsets)}"
        if not isinstance(part, TensorRef) or part.shape != box.sizes or len(part.chunks) != 1:
            raise DamagedError(f"{place} is not what the plan says", address=name)
        _refuse_unplain(part, name)
        first = first or part
        if part.dtype is not (dtype or first.dtype) or part.byteorder != first.byteorder:
            raise DamagedError(f"{place} has another dtype or byte order", address=name)
        chunks.append(Chunk(part.chunks[0].span, *box, part.chunks[0].strides))
    found = first.dtype if first else dtype
    if found is None:
        raise DamagedError("the plan does not state its dtype", address=name)
    return TensorRef(found, shape, tuple(chunks), byteorder=first.byteorder if first else "little")


class Work:
    """Counter of what is done for all tensors of one save.

    A small file can have a hundred thousand runs, each of which is a hundred boxes of a tensor of
    many dimensions. Those of honest saves grow with the bytes of the files: the ranks, the tensors.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._sizes: dict[Source, int] = {}

    def read(self, source: Source) -> None:
        """Count the bytes of a source once: more may be done for them."""
        self._sizes[source] = source.size

    def spend(self, steps: int) -> None:
        """Count steps.

        Raises:
            UnsupportedError: they are more than any save of such a size needs.
        """
        self._steps += steps
        if self._steps > MAX_STEPS and self._steps * A_STEP > sum(self._sizes.values()):
            raise UnsupportedError(
                "its tensors are cut into more pieces, or have more states, than any save of its "
                "size: to put them together would take too long"
            )


def from_runs(name: str, shape: Sizes, runs: Iterable[Run], work: Work | None = None) -> TensorRef:
    """Return the tensor whose elements, in C order, are those of the runs one after the other.

    Args:
        name: of the tensor, for messages.
        shape: of the tensor.
        runs: elements of flat tensors.
        work: the counter of all tensors of the save; a single run needs none.

    Raises:
        DamagedError: the runs are of several dtypes, are not flat, or have too few elements.
        UnsupportedError: the values are quantized, conjugated or negated.
    """
    first: TensorRef | None = None
    chunks: list[Chunk] = []
    end = 0
    for ref, start, count in runs:
        _refuse_unplain(ref, name)
        first = first or ref
        if ref.dtype is not first.dtype or ref.byteorder != first.byteorder:
            raise DamagedError("its parts have several dtypes or byte orders", address=name)
        if len(ref.shape) != 1 or len(ref.chunks) != 1 or not ref.chunks[0].is_contiguous:
            raise DamagedError("a part of it is not a flat tensor", address=name)
        if start + count > ref.numel:
            raise DamagedError("a part of it ends too soon", address=name)
        before = len(chunks)
        chunks += _chunks_of(ref, start, shape, end, count)
        end += count
        if work is not None:
            work.read(ref.chunks[0].span.source)
            work.spend((len(chunks) - before) * (A_BOX + len(shape) ** 2))
    if end != prod(shape) or first is None:
        raise DamagedError(
            f"its parts have {end:,} elements, and its shape {list(shape)} {prod(shape):,}",
            address=name,
            hint=FETCH,
        )
    if not chunks:  # without elements; no chunk at all would say that nothing is stored
        begin = ByteSpan(first.chunks[0].span.source, first.chunks[0].span.offset, 0)
        chunks = [Chunk(begin, tuple(0 for _ in shape), shape, contiguous_strides(shape))]
    return TensorRef(first.dtype, shape, tuple(chunks), byteorder=first.byteorder)


def first_of(runs: Sequence[Run], count: int) -> Iterator[Run]:
    """Yield the first ``count`` elements of the runs: the rest is padding."""
    for ref, start, numel in runs:
        yield Run(ref, start, min(numel, count))
        count -= min(numel, count)


class Joined:
    """Flat tensors, one after the other, as one."""

    def __init__(self, flats: Sequence[TensorRef]) -> None:
        self._flats = flats
        self._ends = [*accumulate(ref.numel for ref in flats)]

    @property
    def numel(self) -> int:
        """The number of elements of all."""
        return self._ends[-1] if self._ends else 0

    def between(self, start: int, count: int) -> Iterator[Run]:
        """Yield where the elements ``start`` to ``start + count`` are.

        The run is empty if there are none, so that a tensor without elements has a dtype.
        """
        if not count and self._flats:
            yield Run(self._flats[0], 0, 0)
        for n in range(bisect_right(self._ends, start), len(self._flats)):
            ref, begin = self._flats[n], self._ends[n] - self._flats[n].numel
            first, last = max(start, begin), min(start + count, self._ends[n])
            if first >= start + count:
                return
            if first < last:
                yield Run(ref, first - begin, last - first)


def flat_boxes(shape: Sizes, start: int, stop: int) -> Iterator[Box]:
    """Yield the boxes of the elements ``start`` to ``stop`` of the flattened tensor, in order."""
    if start >= stop:
        return
    if not shape:
        yield Box((), ())
        return
    row = prod(shape[1:])
    (first, skipped), (last, rest) = divmod(start, row), divmod(stop, row)
    if first == last:
        yield from _in_row(shape, first, skipped, rest)
        return
    if skipped:
        yield from _in_row(shape, first, skipped, row)
        first += 1
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    yield from _in_row(shape, last, 0, rest)


def _in_row(shape: Sizes, row: int, start: int, stop: int) -> Iterator[Box]:
    for offsets, sizes in flat_boxes(shape[1:], start, stop):
        yield Box((row, *offsets), (1, *sizes))


def _chunks_of(ref: TensorRef, start: int, shape: Sizes, begin: int, count: int) -> Iterator[Chunk]:
    """Yield the chunks for elements of a flat tensor that lie at ``begin`` in the whole."""
    span, width = ref.chunks[0].span, ref.dtype.itemsize
    offset = span.offset + start * width
    for box in flat_boxes(shape, begin, begin + count):
        nbytes = prod(box.sizes) * width
        yield Chunk(ByteSpan(span.source, offset, nbytes), *box, contiguous_strides(box.sizes))
        offset += nbytes


def _refuse_unplain(part: TensorRef, name: str) -> None:
    if part.lazy or part.quantizer:
        raise UnsupportedError(
            "its chunks are quantized, conjugated or negated, which the plan does not say",
            address=name,
            hint="save it again after resolve_conj(), resolve_neg() or dequantize()",
        )


def _are_separate(boxes: list[Box], ndim: int) -> bool:
    """Return whether cuts through whole slabs of the tensor separate all boxes.

    Device meshes cut so, along each axis once; two rounds allow cuts that differ from slab to slab.
    It takes no longer than sorting, so that no plan can make it slow. Runs of a flattened tensor
    are cut so too.
    """
    groups = [boxes] if len(boxes) > 1 else []
    for axis in (*range(ndim), *range(ndim)):
        groups = [slab for group in groups for slab in _slabs(group, axis) if len(slab) > 1]
    return not groups


def _slabs(boxes: list[Box], axis: int) -> list[list[Box]]:
    """Return the boxes in groups that do not overlap along the axis."""
    slabs: list[list[Box]] = []
    end = 0
    for box in sorted(boxes, key=lambda box: box.offsets[axis]):
        if not slabs or box.offsets[axis] >= end:
            slabs.append([])
        slabs[-1].append(box)
        end = max(end, box.offsets[axis] + box.sizes[axis])
    return slabs

"""Parts, joins and transposes of tensors, as references: no value is read or copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckptool.errors import UnsupportedError
from ckptool.records import replace
from ckptool.sources.base import ByteSpan
from ckptool.tree.geometry import extent
from ckptool.tree.nodes import Chunk, TensorRef


def refuse_packed(ref: TensorRef) -> None:
    """Refuse a tensor whose stored bytes are no elements in a grid.

    Raises:
        UnsupportedError: it is quantized, packed, or has no values.
    """
    if ref.quantizer is not None or ref.dtype.packed != 1 or (ref.numel and not ref.chunks):
        raise UnsupportedError(f"a {ref.dtype} tensor of this kind cannot be cut or joined")


def transposed(ref: TensorRef) -> TensorRef:
    """Return a tensor with its last two dimensions swapped.

    Raises:
        UnsupportedError: it has fewer than two.
    """
    if len(ref.shape) < 2:
        refuse_packed(ref)
        raise UnsupportedError(f"a tensor of shape {list(ref.shape)} has no transpose")
    return _with_axes(ref, lambda values, _new: (*values[:-2], values[-1], values[-2]))


def axis_first(ref: TensorRef, axis: int) -> TensorRef:
    """Return a tensor with one dimension before all others."""
    return _with_axes(ref, lambda values, _new: (values[axis], *values[:axis], *values[axis + 1 :]))


def lifted(ref: TensorRef, axis: int) -> TensorRef:
    """Return a tensor with a new dimension of size 1."""
    return _with_axes(ref, lambda values, new: (*values[:axis], new, *values[axis:]))


def lowered(ref: TensorRef, axis: int) -> TensorRef:
    """Return a tensor without a dimension of size 1."""
    return _with_axes(ref, lambda values, _new: (*values[:axis], *values[axis + 1 :]))


# (a value for each dimension, the value for a new one) -> the values in another order
Rearrange = Callable[[tuple[int, ...], int], tuple[int, ...]]


def _with_axes(ref: TensorRef, rearranged: Rearrange) -> TensorRef:
    """Return a tensor with its dimensions in another order, with one more, or with one less."""
    refuse_packed(ref)
    chunks = tuple(
        Chunk(c.span, rearranged(c.offsets, 0), rearranged(c.shape, 1), rearranged(c.strides, 1))
        for c in (_gridded(ref, chunk) for chunk in ref.chunks)
    )
    return replace(ref, shape=rearranged(ref.shape, 1), chunks=chunks)


def _gridded(ref: TensorRef, chunk: Chunk) -> Chunk:
    """Return a chunk with an offset for each dimension; a chunk alone may have none."""
    if len(chunk.offsets) == len(ref.shape):
        return chunk
    return chunk._replace(offsets=(0,) * len(ref.shape))


def sliced(ref: TensorRef, axis: int, start: int, stop: int) -> TensorRef:
    """Return the part of a tensor from ``start`` to ``stop`` along a dimension."""
    refuse_packed(ref)
    chunks = []
    for chunk in ref.chunks:
        whole = _gridded(ref, chunk)
        begin = max(start - whole.offsets[axis], 0)
        end = min(stop - whole.offsets[axis], whole.shape[axis])
        chunks.append(_narrowed(ref, whole, axis, begin, max(begin, end), start))
    shape = (*ref.shape[:axis], stop - start, *ref.shape[axis + 1 :])
    return replace(ref, shape=shape, chunks=_not_empty(chunks))


def _not_empty(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """Return the chunks with values; of an empty tensor one, since only meta tensors have none."""
    return (*(chunk for chunk in chunks if 0 not in chunk.shape),) or tuple(chunks[:1])


def _narrowed(ref: TensorRef, chunk: Chunk, axis: int, begin: int, end: int, origin: int) -> Chunk:
    """Return the part of a chunk, placed in the part of the tensor that begins at ``origin``."""
    width = ref.dtype.itemsize
    shape = (*chunk.shape[:axis], end - begin, *chunk.shape[axis + 1 :])
    moved = chunk.offsets[axis] + begin - origin
    offsets = (*chunk.offsets[:axis], moved, *chunk.offsets[axis + 1 :])
    nbytes = extent(shape, chunk.strides) * width
    at = chunk.span.offset + (begin * chunk.strides[axis] * width if nbytes else 0)
    return Chunk(ByteSpan(chunk.span.source, at, nbytes), offsets, shape, chunk.strides)


def joined(refs: Sequence[TensorRef], axis: int) -> TensorRef:
    """Return tensors one after the other along a dimension.

    Raises:
        UnsupportedError: their dtypes or other dimensions differ.
    """
    first = refs[0]
    chunks: list[Chunk] = []
    size = 0
    for ref in refs:
        refuse_packed(ref)
        _refuse_unlike(first, ref, axis)
        for chunk in ref.chunks:
            whole = _gridded(ref, chunk)
            offsets = (
                *whole.offsets[:axis], whole.offsets[axis] + size, *whole.offsets[axis + 1 :]
            )  # fmt: skip
            chunks.append(whole._replace(offsets=offsets))
        size += ref.shape[axis]
    shape = (*first.shape[:axis], size, *first.shape[axis + 1 :])
    return replace(
        first, shape=shape, chunks=_not_empty(chunks), requires_grad=False, subclass=None
    )


def _refuse_unlike(first: TensorRef, ref: TensorRef, axis: int) -> None:
    kinds = [(each.dtype.name, each.byteorder, each.lazy) for each in (first, ref)]
    shapes = [(*each.shape[:axis], *each.shape[axis + 1 :]) for each in (first, ref)]
    if kinds[0] != kinds[1] or shapes[0] != shapes[1] or len(first.shape) != len(ref.shape):
        raise UnsupportedError(
            f"{first.dtype} {list(first.shape)} and {ref.dtype} {list(ref.shape)} cannot be joined "
            f"along dimension {axis}"
        )

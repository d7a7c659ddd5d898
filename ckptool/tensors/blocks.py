"""Arithmetic on stored tensors, chunk by chunk.

Values are read through a buffer that fits the CPU's cache. So memory does not grow with the tensor,
and the arithmetic finds the bytes in the cache. numpy is imported when it is first used, since that
takes 0.1 s, which ``inspect`` without ``--stats`` does not spend. bfloat16 and the float8 family
come from ``ml_dtypes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from math import prod
from threading import local
from typing import TYPE_CHECKING, Any, TypeVar

from ckptool.dtypes import DType
from ckptool.errors import DamagedError, RepetitionError, UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.tree.geometry import contiguous_strides, numpy_shape
from ckptool.tree.nodes import Chunk, TensorRef, longest_axis, narrowed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Item = TypeVar("Item")

BLOCK = 1 << 20  # bytes read at a time
FAR = 8 << 20  # bytes: a strided block that spans more is not read as a whole
MAX_UNFOLDED = 1 << 29  # bytes of a view whose elements share memory
NEAR = 32 << 10  # bytes: values that lie closer are read together, which costs less than two reads

REAL = frozenset({"float", "int", "uint"})  # kinds that are cast to each other


@cache
def numpy_dtype(dtype: DType, byteorder: str = "little") -> np.dtype[Any]:
    """Return the numpy dtype that does arithmetic on ``dtype``.

    Raises:
        UnsupportedError: there is none (packed and bit types).
    """
    import numpy as np

    if dtype.numpy is None:
        raise UnsupportedError(f"there is no arithmetic for {dtype}")
    if dtype.numpy not in vars(np):
        import ml_dtypes  # 7 ms, for the dtypes that numpy lacks

        own = getattr(ml_dtypes, dtype.numpy, None)
        if own is not None:  # numpy 1 has bool, but under no such name
            plain: np.dtype[Any] = np.dtype(own)
            return plain.newbyteorder(">") if byteorder == "big" and plain.itemsize > 1 else plain
    return np.dtype(dtype.numpy).newbyteorder("<" if byteorder == "little" else ">")


def element_dtype(ref: TensorRef) -> np.dtype[Any]:
    """Return the numpy dtype of the stored elements; plain bytes if they can only be moved."""
    import numpy as np

    swapped = ref.byteorder == "big" and ref.dtype.itemsize > 1
    if ref.dtype.numpy is None and not ref.lazy and not swapped:
        return np.dtype(f"V{ref.dtype.itemsize}")
    return numpy_dtype(ref.dtype, ref.byteorder)


NO_ROOM = memoryview(b"")
_OWN = local()


def room() -> memoryview:
    """Return this thread's buffer of ``BLOCK`` bytes: new memory is uncached and gets cleared."""
    if not hasattr(_OWN, "room"):
        _OWN.room = memoryview(bytearray(BLOCK))
    given: memoryview = _OWN.room
    return given


def in_batches(
    items: Iterable[Item], cost: Callable[[Item], int], enough: int
) -> Iterator[list[Item]]:
    """Yield lists of items that cost ``enough`` together: many small ones, or a large one."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += cost(item)
        if total >= enough:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class Part(NamedTuple):
    """A part of a tensor's values, which a thread may read.

    ``values(room)`` returns them flat, maybe in ``room``, and valid until that is filled again.
    """

    nbytes: int
    values: Callable[[memoryview], Array]


def blocks(reader: TensorReader, ref: TensorRef) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the tensor's values in C order, as flat arrays of at most ``BLOCK`` bytes.

    Strided blocks, and chunks that interleave, are put in order part by part.
    """
    for part in parts(reader, ref):
        yield part.values(NO_ROOM)


def parts(reader: TensorReader, ref: TensorRef) -> Iterator[Part]:
    """Yield the parts that :func:`blocks` reads, before they are read."""
    dtype = element_dtype(ref)
    if not in_order(ref):
        _refuse_uncovered(ref)
        for offsets, sizes in _slabs(ref.shape, dtype.itemsize):
            nbytes = prod(sizes) * dtype.itemsize
            yield Part(nbytes, partial(_assembled, reader, ref, offsets, sizes))
        return
    for chunk in ref.chunks:
        cut = _runs if chunk.is_contiguous else _in_c_order
        for part in cut(chunk, dtype.itemsize):
            yield Part(prod(part.shape) * dtype.itemsize, partial(_flat, reader, ref, part))


def _flat(reader: TensorReader, ref: TensorRef, chunk: Chunk, room: memoryview) -> Array:
    return chunk_values(reader, ref, chunk, room).reshape(-1)


def refuse_unfolding(chunk: Chunk, itemsize: int) -> None:
    """Refuse a view that repeats a few values too often, as ``expand`` can.

    Raises:
        RepetitionError: the view would take too long to read.
    """
    nbytes = prod(chunk.shape) * itemsize
    if nbytes > max(MAX_UNFOLDED, 2 * chunk.span.nbytes):
        raise RepetitionError(f"a view repeats {chunk.span.nbytes} bytes up to {nbytes}")


def _runs(chunk: Chunk, itemsize: int) -> Iterator[Chunk]:
    """Cut a contiguous chunk into parts of at most ``BLOCK`` bytes."""
    source, offset, nbytes = chunk.span
    step = BLOCK - BLOCK % itemsize
    for start in range(0, nbytes, step):
        span = ByteSpan(source, offset + start, min(step, nbytes - start))
        yield Chunk(span, (0,), (span.nbytes // itemsize,), (1,))


def _in_c_order(chunk: Chunk, itemsize: int) -> Iterator[Chunk]:
    """Cut a chunk into parts of at most ``BLOCK`` bytes, which follow each other in C order."""
    refuse_unfolding(chunk, itemsize)
    yield from _halves(chunk, itemsize)


def _halves(chunk: Chunk, itemsize: int) -> Iterator[Chunk]:
    if prod(chunk.shape) * itemsize <= BLOCK:
        yield chunk
        return
    axis = next(i for i, size in enumerate(chunk.shape) if size > 1)
    half, size = chunk.shape[axis] // 2, chunk.shape[axis]
    for part in (range(half), range(half, size)):
        yield from _halves(narrowed(chunk, axis, part, itemsize), itemsize)


def in_order(ref: TensorRef) -> bool:
    """Return whether the chunks, one after the other, are the tensor in C order.

    Each is then a run of the flattened tensor: whole rows, or a piece of one row.
    """
    if len(ref.chunks) == 1:
        return True
    steps = contiguous_strides(ref.shape)
    end = 0
    for chunk in ref.chunks:
        start = sum(offset * step for offset, step in zip(chunk.offsets, steps, strict=True))
        if start != end or not _is_run(chunk.shape, ref.shape):
            return False
        end += prod(chunk.shape)
    return True


def _is_run(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a box is a run of the flattened tensor: it is full behind its first axis."""
    first = next((axis for axis, size in enumerate(sizes) if size != 1), len(sizes))
    return sizes[first + 1 :] == shape[first + 1 :]


def _refuse_uncovered(ref: TensorRef) -> None:
    """Refuse chunks that do not cover the tensor."""
    if sum(prod(chunk.shape) for chunk in ref.chunks) != ref.numel:
        raise DamagedError(f"the chunks of a tensor of shape {list(ref.shape)} do not cover it")


def _slabs(
    shape: tuple[int, ...], itemsize: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (offsets, sizes) of boxes of at most ``BLOCK`` bytes, which are the tensor in order."""
    if not shape:
        yield (), ()
        return
    row = prod(shape[1:]) * itemsize
    if row > BLOCK:
        for index in range(shape[0]):
            for offsets, sizes in _slabs(shape[1:], itemsize):
                yield (index, *offsets), (1, *sizes)
        return
    rows = BLOCK // max(row, 1)
    for start in range(0, shape[0], rows):
        yield (start, *(0 for _ in shape[1:])), (min(rows, shape[0] - start), *shape[1:])


def _assembled(
    reader: TensorReader,
    ref: TensorRef,
    offsets: tuple[int, ...],
    sizes: tuple[int, ...],
    _room: memoryview,
) -> Array:
    """Return a box of a tensor of several chunks, flat."""
    import numpy as np

    dtype = element_dtype(ref)
    box = np.empty(numpy_shape(sizes), dtype)
    for chunk in ref.chunks:
        lows = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
        highs = [
            min(a + size, b + count)
            for a, size, b, count in zip(offsets, sizes, chunk.offsets, chunk.shape, strict=True)
        ]
        if any(low >= high for low, high in zip(lows, highs, strict=True)):
            continue
        piece = chunk
        for axis, (low, high, start) in enumerate(zip(lows, highs, chunk.offsets, strict=True)):
            if high - low < piece.shape[axis]:
                piece = narrowed(piece, axis, range(low - start, high - start), dtype.itemsize)
        place = tuple(
            slice(low - start, high - start)
            for low, high, start in zip(lows, highs, offsets, strict=True)
        )
        _gather(reader, piece, box[place])
    return _resolved(box.reshape(-1), ref)


def gather(reader: TensorReader, chunk: Chunk, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return a strided chunk as a contiguous array of its shape, without the bytes in between."""
    import numpy as np

    values = np.empty(numpy_shape(chunk.shape), dtype)
    _gather(reader, chunk, values)
    return values


def _gather(reader: TensorReader, chunk: Chunk, values: np.ndarray[Any, Any]) -> None:
    """Fill ``values``; read runs that lie far apart, as in a transposed tensor, one by one."""
    if chunk.span.nbytes <= FAR:
        values[...] = strided(reader.read(chunk.span), chunk, values.dtype)
        return
    axis = longest_axis(chunk)
    size = chunk.shape[axis]
    step = max(1, NEAR // (chunk.strides[axis] * values.itemsize))
    for start in range(0, size, step):
        part = range(start, min(start + step, size))
        place = (slice(None),) * axis + (slice(part.start, part.stop),)
        _gather(reader, narrowed(chunk, axis, part, values.itemsize), values[place])


def strided(
    data: bytes | bytearray | memoryview, chunk: Chunk, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """Return the bytes of a chunk as an array with its shape and strides; writes go to ``data``."""
    import numpy as np

    strides = tuple(stride * dtype.itemsize for stride in chunk.strides)
    return np.ndarray(numpy_shape(chunk.shape), dtype, data, strides=strides)


def chunk_values(
    reader: TensorReader, ref: TensorRef, chunk: Chunk, room: memoryview = NO_ROOM
) -> np.ndarray[Any, Any]:
    """Return a part of a tensor as an array of the part's shape, maybe in ``room``."""
    dtype = element_dtype(ref)
    if chunk.span.nbytes > FAR:
        return _resolved(gather(reader, chunk, dtype), ref)
    return _resolved(strided(reader.read_into(room, chunk.span), chunk, dtype), ref)


def bytes_of(values: np.ndarray[Any, Any]) -> memoryview:
    """Return the values in C order, as bytes; copy them only if they lie in another order."""
    import numpy as np

    return np.ascontiguousarray(values).view(np.uint8).data


E4M3_MAX = 448.0
FLOAT32_BYTES = 4


def cast(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return real numbers in another dtype, rounded as torch 2.13 rounds them.

    torch casts to floating dtypes below 32 bits by way of float32. Values too large for
    ``float8_e4m3fn``, which has no infinity, become its largest one. Integers lose the fraction.
    """
    import numpy as np

    if values.dtype == wanted:
        return values
    is_narrow = wanted.kind not in "iu" and wanted.itemsize < FLOAT32_BYTES
    with np.errstate(all="ignore"):  # casts may overflow to infinity
        if is_narrow and (wanted.itemsize == 1 or values.dtype.itemsize > FLOAT32_BYTES):
            values = values.astype("<f4", copy=False)
        return (
            _looked_up(values, wanted)
            if is_narrow and wanted.itemsize == 1
            else values.astype(wanted)
        )


def _looked_up(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return float32 values in a dtype of one byte, by a table: ``ml_dtypes`` is four times slower.

    The upper 16 bits of a float32 have at least four bits of mantissa more than such a dtype. If
    the lowest of them is set wherever the lower half is not zero, rounding them rounds the value.
    """
    bits = values.view("<u4")
    places = (bits >> 16) | ((bits & 0xFFFF) != 0)
    found: np.ndarray[Any, Any] = _table(wanted).take(places.astype("p"), mode="wrap")
    return found.view(wanted)


@cache
def _table(wanted: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return the bits of the 65,536 values that the upper 16 bits of a float32 can have."""
    import numpy as np

    values = (np.arange(1 << 16, dtype="<u4") << 16).view("<f4")
    with np.errstate(all="ignore"):
        if wanted.name == "float8_e4m3fn":
            values = values.clip(-E4M3_MAX, E4M3_MAX)
        return values.astype(wanted).view(np.uint8)


def _resolved(values: np.ndarray[Any, Any], ref: TensorRef) -> np.ndarray[Any, Any]:
    """Apply the operations that torch stored as flags instead of doing them."""
    if "conj" in ref.lazy:
        values = values.conj()
    return -values if "neg" in ref.lazy else values


def value_bytes(reader: TensorReader, ref: TensorRef) -> Iterator[bytes]:
    """Yield the tensor's values in C order, little-endian, as a safetensors file stores them."""
    if ref.is_stored_plainly:
        span = ref.chunks[0].span
        for start in range(0, span.nbytes, BLOCK):
            yield reader.read(span, start, min(BLOCK, span.nbytes - start))
        return
    for values in blocks(reader, ref):
        swapped = values.dtype.byteorder == ">"  # arithmetic gives native byte order
        yield (values.byteswap() if swapped else values).tobytes()


def same_values(reader: TensorReader, one: TensorRef, other: TensorRef) -> bool:
    """Return whether two tensors are equal, byte for byte, wherever they lie, at any strides."""
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    if one.chunks == other.chunks:
        return True
    return _joined_equal(value_bytes(reader, one), value_bytes(reader, other))


def equal_after_cast(reader: TensorReader, ours: TensorRef, theirs: TensorRef) -> bool:
    """Return whether a tensor has another's values, rounded to its dtype if the dtypes differ."""
    if ours.dtype is theirs.dtype or not {ours.dtype.kind, theirs.dtype.kind} <= REAL:
        return same_values(reader, ours, theirs)
    wanted = numpy_dtype(ours.dtype)
    rounded = (cast(block, wanted).tobytes() for block in blocks(reader, theirs))
    return _joined_equal(value_bytes(reader, ours), rounded)


def _joined_equal(ours: Iterator[bytes], theirs: Iterator[bytes]) -> bool:
    """Return whether two streams are equal; their blocks may be cut differently."""
    left = right = b""
    while True:
        left, right = left or next(ours, b""), right or next(theirs, b"")
        if not left or not right:
            return not left and not right
        size = min(len(left), len(right))
        if left[:size] != right[:size]:
            return False
        left, right = left[size:], right[size:]

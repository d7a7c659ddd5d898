"""Arithmetic on stored tensors, chunk by chunk.

Values are read through a buffer that fits a processor's cache, so memory does not grow with the
tensor and the arithmetic runs while the bytes are warm. numpy is imported when first used: 0.1 s
that ``inspect`` without ``--stats`` does not spend. bfloat16 and the float8 family are
``ml_dtypes``'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptool.dtypes import DType
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.reports import TensorStats
from ckptool.tree import ByteSpan, Chunk, TensorRef, longest_axis, narrowed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK = 1 << 20  # bytes read at a time
FAR = 8 << 20  # bytes: a strided block that spans more is not read as a whole
MAX_UNFOLDED = 1 << 32  # bytes of a view whose elements share memory
NEAR = 32 << 10  # bytes: what lies closer is read together, since that costs less than two reads

REAL = frozenset({"float", "int", "uint"})  # kinds that are cast to each other

Progress = Callable[[int], None]


def no_progress(_nbytes: int) -> None:
    """Tells nobody."""


@cache
def numpy_dtype(dtype: DType, byteorder: str = "little") -> np.dtype[Any]:
    """The numpy type that does arithmetic on ``dtype``.

    Raises:
        UnsupportedError: there is none (packed and bit types).
    """
    import ml_dtypes
    import numpy as np

    if dtype.numpy is None:
        raise UnsupportedError(f"there is no arithmetic for {dtype}")
    own = getattr(ml_dtypes, dtype.numpy, None)
    if own is not None and not hasattr(np, dtype.numpy):
        plain: np.dtype[Any] = np.dtype(own)
        return plain.newbyteorder(">") if byteorder == "big" and plain.itemsize > 1 else plain
    return np.dtype(dtype.numpy).newbyteorder("<" if byteorder == "little" else ">")


def element_dtype(ref: TensorRef) -> np.dtype[Any]:
    """The numpy type of the stored elements; plain bytes where they can only be moved."""
    import numpy as np

    swapped = ref.byteorder == "big" and ref.dtype.itemsize > 1
    if ref.dtype.numpy is None and not ref.lazy and not swapped:
        return np.dtype(f"V{ref.dtype.itemsize}")
    return numpy_dtype(ref.dtype, ref.byteorder)


NO_ROOM = memoryview(b"")


class Part(NamedTuple):
    """Some of a tensor's values; reading them may be left to a thread.

    ``values(room)`` gives them flat, maybe in ``room``: until that is filled again.
    """

    nbytes: int
    values: Callable[[memoryview], Array]


def blocks(reader: TensorReader, ref: TensorRef) -> Iterator[np.ndarray[Any, Any]]:
    """The tensor's values in C order, as flat arrays of at most ``BLOCK`` bytes.

    Strided blocks are put in order part by part; several that interleave take memory for all.
    """
    for part in parts(reader, ref):
        yield part.values(NO_ROOM)


def parts(reader: TensorReader, ref: TensorRef) -> Iterator[Part]:
    """The same as :func:`blocks`, before they are read."""
    dtype = element_dtype(ref)
    if not in_order(ref):
        for piece in _slices(_resolved(assemble(reader, ref, dtype).reshape(-1), ref)):
            yield Part(piece.nbytes, partial(_itself, piece))
        return
    for chunk in ref.chunks:
        cut = _runs if chunk.is_contiguous else _in_c_order
        for part in cut(chunk, dtype.itemsize):
            yield Part(prod(part.shape) * dtype.itemsize, partial(_flat, reader, ref, part))


def _itself(values: Array, _room: memoryview) -> Array:
    return values


def _flat(reader: TensorReader, ref: TensorRef, chunk: Chunk, room: memoryview) -> Array:
    return chunk_values(reader, ref, chunk, room).reshape(-1)


def _slices(flat: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    step = max(1, BLOCK // flat.itemsize)
    for start in range(0, flat.size, step):
        yield flat[start : start + step]


def _refuse_unfolding(chunk: Chunk, itemsize: int) -> None:
    """A view that repeats a few values, as after ``expand``, can have any number of them.

    Raises:
        UnsupportedError: more than anybody waits for.
    """
    nbytes = prod(chunk.shape) * itemsize
    if nbytes > max(MAX_UNFOLDED, 2 * chunk.span.nbytes):
        raise UnsupportedError(f"a view repeats {chunk.span.nbytes} bytes up to {nbytes}")


def _runs(chunk: Chunk, itemsize: int) -> Iterator[Chunk]:
    """Parts of at most ``BLOCK`` bytes of values that lie in C order."""
    source, offset, nbytes = chunk.span
    step = BLOCK - BLOCK % itemsize
    for start in range(0, nbytes, step):
        span = ByteSpan(source, offset + start, min(step, nbytes - start))
        yield Chunk(span, (0,), (span.nbytes // itemsize,), (1,))


def _in_c_order(chunk: Chunk, itemsize: int) -> Iterator[Chunk]:
    """Parts of at most ``BLOCK`` bytes of values whose elements follow each other in C order."""
    _refuse_unfolding(chunk, itemsize)
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
    """Whether the chunks, one after the other, are the tensor in C order: cut into rows."""
    row = 0
    for chunk in ref.chunks:
        whole_rows = chunk.shape[1:] == ref.shape[1:] and not any(chunk.offsets[1:])
        if len(ref.chunks) > 1 and (not whole_rows or chunk.offsets[0] != row):
            return False
        row += chunk.shape[0] if chunk.shape else 0
    return True


def assemble(reader: TensorReader, ref: TensorRef, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A tensor of several chunks as one array of its shape; takes memory for all of it.

    Raises:
        DamagedError: the chunks do not cover the tensor.
    """
    import numpy as np

    if sum(prod(chunk.shape) for chunk in ref.chunks) != ref.numel:
        raise DamagedError(f"the chunks of a tensor of shape {list(ref.shape)} do not cover it")
    whole = np.empty(ref.shape, dtype)
    for chunk in ref.chunks:
        place = tuple(
            slice(start, start + size)
            for start, size in zip(chunk.offsets, chunk.shape, strict=True)
        )
        whole[place] = gather(reader, chunk, dtype)
    return whole


def gather(reader: TensorReader, chunk: Chunk, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A strided chunk as a contiguous array of its shape; what lies between is skipped."""
    import numpy as np

    values = np.empty(chunk.shape, dtype)
    _gather(reader, chunk, values)
    return values


def _gather(reader: TensorReader, chunk: Chunk, values: np.ndarray[Any, Any]) -> None:
    """Fill ``values``: runs that lie far apart, as in a transposed tensor, are read one by one."""
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
    """The bytes of a chunk as an array with its shape and strides; writes go into ``data``."""
    import numpy as np

    strides = tuple(stride * dtype.itemsize for stride in chunk.strides)
    return np.ndarray(chunk.shape, dtype, data, strides=strides)


def chunk_values(
    reader: TensorReader, ref: TensorRef, chunk: Chunk, room: memoryview = NO_ROOM
) -> np.ndarray[Any, Any]:
    """A part of a tensor as an array of the part's shape, maybe in ``room``."""
    dtype = element_dtype(ref)
    if chunk.span.nbytes > FAR:
        return _resolved(gather(reader, chunk, dtype), ref)
    return _resolved(strided(reader.read_into(room, chunk.span), chunk, dtype), ref)


def bytes_of(values: np.ndarray[Any, Any]) -> memoryview:
    """The values in C order, as bytes; a copy only where they lie otherwise."""
    import numpy as np

    return np.ascontiguousarray(values).view(np.uint8).data


E4M3_MAX = 448.0
FLOAT32_BYTES = 4


def cast(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Real numbers in another type, rounded as torch 2.13 does it.

    torch reaches floating types below 32 bits by way of float32, and ``float8_e4m3fn``, which has
    no infinity, by taking its largest value for all that is beyond. Integers take what stands
    before the point.
    """
    import numpy as np

    if values.dtype == wanted:
        return values
    with np.errstate(all="ignore"):  # overflow to infinity is what a cast does
        if wanted.kind not in "iu" and wanted.itemsize < FLOAT32_BYTES < values.dtype.itemsize:
            values = values.astype(np.float32)
        if wanted.name == "float8_e4m3fn":
            values = values.astype(np.float32).clip(-E4M3_MAX, E4M3_MAX)
        return values.astype(wanted)


def _resolved(values: np.ndarray[Any, Any], ref: TensorRef) -> np.ndarray[Any, Any]:
    """The values after the operations that torch stored as flags instead of doing them."""
    if "conj" in ref.lazy:
        values = values.conj()
    return -values if "neg" in ref.lazy else values


def value_bytes(reader: TensorReader, ref: TensorRef) -> Iterator[bytes]:
    """The tensor's values in C order, little-endian: what a safetensors file stores."""
    if ref.is_stored_plainly:
        span = ref.chunks[0].span
        for start in range(0, span.nbytes, BLOCK):
            yield reader.read(span, start, min(BLOCK, span.nbytes - start))
        return
    for values in blocks(reader, ref):
        swapped = values.dtype.byteorder == ">"  # arithmetic has put them in order
        yield (values.byteswap() if swapped else values).tobytes()


def same_values(reader: TensorReader, one: TensorRef, other: TensorRef) -> bool:
    """Whether two tensors are equal, byte for byte, wherever they lie, whatever their strides."""
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    if one.chunks == other.chunks:
        return True
    return _joined_equal(value_bytes(reader, one), value_bytes(reader, other))


def equal_after_cast(reader: TensorReader, ours: TensorRef, theirs: TensorRef) -> bool:
    """Whether a tensor has another's values, rounded to its own type where they differ in type."""
    if ours.dtype is theirs.dtype or not {ours.dtype.kind, theirs.dtype.kind} <= REAL:
        return same_values(reader, ours, theirs)
    wanted = numpy_dtype(ours.dtype)
    rounded = (cast(block, wanted).tobytes() for block in blocks(reader, theirs))
    return _joined_equal(value_bytes(reader, ours), rounded)


def _joined_equal(ours: Iterator[bytes], theirs: Iterator[bytes]) -> bool:
    """Whether two streams are equal; their blocks may be cut differently."""
    left = right = b""
    while True:
        left, right = left or next(ours, b""), right or next(theirs, b"")
        if not left or not right:
            return not left and not right
        size = min(len(left), len(right))
        if left[:size] != right[:size]:
            return False
        left, right = left[size:], right[size:]


# ------------------------------------------------------------------------------------------- finite


def count_nonfinite(reader: TensorReader, ref: TensorRef) -> int:
    """How many values are NaN or infinite; 0 for types that cannot be."""
    if not ref.dtype.is_floating or ref.dtype.numpy is None:
        return 0
    import numpy as np

    count = 0
    with np.errstate(all="ignore"):
        for values in blocks(reader, ref):
            # A sum is not finite if a value is not, and costs a third of asking each. It may
            # overflow.
            if not np.isfinite(_sum(values)):
                count += int(values.size - np.count_nonzero(np.isfinite(_wide(values))))
    return count


def find_nonfinite(
    reader: TensorReader, refs: Iterable[tuple[str, TensorRef]], progress: Progress = no_progress
) -> dict[str, int]:
    """The names whose tensors hold NaN or infinities, and how many."""
    bad: dict[str, int] = {}
    for name, ref in refs:
        count = count_nonfinite(reader, ref)
        if count:
            bad[name] = count
        progress(ref.nbytes)
    return bad


def _sum(values: np.ndarray[Any, Any]) -> Any:
    return values.sum() if values.dtype.kind in "fc" else _wide(values).sum()


def _wide(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Types of ``ml_dtypes`` as float32, where numpy's own loops are fast and complete."""
    return values if values.dtype.kind in "fciub" else values.astype("float32")


FiniteTest = Callable[[memoryview], bool]

# Bits of the exponent, all ones in NaN and infinity, for types that numpy sums slowly.
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}
_SUMMED = frozenset({"float32", "float64", "complex64", "complex128"})


def finite_test(dtype: DType, byteorder: str = "little") -> FiniteTest | None:
    """Whether no value in some bytes is NaN or infinite; None: there is no quick way.

    True is sure. False may also come from a sum that overflows.
    """
    import numpy as np

    order = "<" if byteorder == "little" else ">"
    if dtype.name in _SUMMED:
        kind = np.dtype(dtype.numpy).newbyteorder(order)  # type: ignore[arg-type]

        def by_sum(data: memoryview) -> bool:
            whole = data[: len(data) - len(data) % kind.itemsize]
            with np.errstate(all="ignore"):
                return bool(np.isfinite(np.frombuffer(whole, kind).sum()))

        return by_sum
    mask = _EXPONENTS.get(dtype.name)
    if mask is None:
        return None
    words = np.dtype(f"{order}u2")

    def by_exponent(data: memoryview) -> bool:
        bits = np.frombuffer(data[: len(data) - len(data) % 2], words)
        return not bits.size or int((bits & mask).max()) != mask

    return by_exponent


class Nonfinite(NamedTuple):
    """How many values of a tensor are not finite, and whether it looks like a mask."""

    nan: int
    infinite: int
    is_mask: bool  # -inf and one other value: what attention adds where it must not look


def nonfinite_values(reader: TensorReader, ref: TensorRef) -> Nonfinite:
    """An exact count; zeros for types that have neither."""
    import numpy as np

    if not ref.dtype.is_floating or ref.dtype.numpy is None:
        return Nonfinite(0, 0, False)
    nan = infinite = 0
    others: set[float] = set()
    with np.errstate(all="ignore"):
        for block in blocks(reader, ref):
            values = _wide(block)
            finite = np.isfinite(values)
            if not finite.all():
                nan += int(np.count_nonzero(np.isnan(values)))
                infinite += int(np.count_nonzero(np.isinf(values)))
            if len(others) < 3 and values.dtype.kind == "f":
                rest = values[values != -np.inf]
                others.update(map(float, (rest.min(), rest.max())) if rest.size else ())
    is_mask = nan == 0 and infinite > 0 and len(others) == 1 and others != {math.inf}
    return Nonfinite(nan, infinite, is_mask)


def only_value(reader: TensorReader, ref: TensorRef) -> float | None:
    """The value that every element has; None: there are several, or nothing can be said."""
    import numpy as np

    if ref.dtype.kind != "float" or ref.dtype.numpy is None or not ref.numel or not ref.chunks:
        return None
    first: float | None = None
    for block in blocks(reader, ref):
        values = _wide(block)
        first = float(values[0]) if first is None else first
        if not np.all(values == first):
            return None
    return first


def at_limit(reader: TensorReader, ref: TensorRef) -> int:
    """How many integers are their type's smallest or largest value."""
    import numpy as np

    limits = np.iinfo(numpy_dtype(ref.dtype))
    lows = (limits.min,) if limits.min < 0 else ()
    return sum(
        int(np.count_nonzero(np.isin(block, (*lows, limits.max)))) for block in blocks(reader, ref)
    )


# -------------------------------------------------------------------------------------------- stats


def tensor_stats(reader: TensorReader, ref: TensorRef) -> TensorStats | None:
    """Minimum, maximum, mean, standard deviation and norm over the finite values, in float64.

    None for types without an order (complex) or without arithmetic.
    """
    if ref.dtype.numpy is None or ref.dtype.kind == "complex" or not ref.chunks:
        return None
    import numpy as np

    lows, highs, moments, nonfinite = [], [], [], 0
    for block in blocks(reader, ref):
        values = block.astype(np.float64)
        finite = values[np.isfinite(values)]
        nonfinite += values.size - finite.size
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
            with np.errstate(all="ignore"):  # beyond 1e154 squares are infinite, and so are these
                mean = float(finite.mean())
                moments.append((finite.size, mean, float(((finite - mean) ** 2).sum())))
    if not moments:
        return TensorStats(None, None, None, None, None, nonfinite)
    count, mean, spread = _combined(moments)
    norm = math.sqrt(spread + count * mean * mean)
    return TensorStats(min(lows), max(highs), mean, math.sqrt(spread / count), norm, nonfinite)


def _combined(moments: list[tuple[int, float, float]]) -> tuple[int, float, float]:
    """(count, mean, sum of squared deviations) of blocks together (Chan, Golub, LeVeque 1979)."""
    count, mean, spread = moments[0]
    for n, m, s in moments[1:]:
        delta = m - mean
        total = count + n
        mean += delta * n / total
        spread += s + delta * delta * count * n / total
        count = total
    return count, mean, spread

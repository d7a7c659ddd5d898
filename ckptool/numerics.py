"""Arithmetic on stored tensors, chunk by chunk; the only module that knows numpy.

Values are read through a buffer that fits a processor's cache, so memory does not grow with the
tensor and the arithmetic runs while the bytes are warm. numpy is imported when first used: 0.1 s
that ``inspect`` without ``--stats`` does not spend. bfloat16 and the float8 family are
``ml_dtypes``'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptool.dtypes import DType
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.reports import TensorStats
from ckptool.tree import Chunk, TensorRef, longest_axis, narrowed

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 20  # bytes read at a time
FAR = 8 << 20  # bytes: a strided block that spans more is not read as a whole
MAX_UNFOLDED = 1 << 32  # bytes of a view whose elements share memory
NEAR = 32 << 10  # bytes: what lies closer is read together, since that costs less than two reads

Progress = Callable[[int], None]


def no_progress(_nbytes: int) -> None:
    """Tells nobody."""


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


def blocks(reader: TensorReader, ref: TensorRef) -> Iterator[np.ndarray[Any, Any]]:
    """The tensor's values in C order, as flat arrays of at most ``BLOCK`` bytes.

    Strided blocks are put in order part by part; several that interleave take memory for all.
    """
    import numpy as np

    dtype = element_dtype(ref)
    if not _in_order(ref):
        yield from _slices(_resolved(assemble(reader, ref, dtype).reshape(-1), ref))
        return
    for chunk in ref.chunks:
        if chunk.is_contiguous:
            step = BLOCK - BLOCK % dtype.itemsize
            for start in range(0, chunk.span.nbytes, step):
                data = reader.read(chunk.span, start, min(step, chunk.span.nbytes - start))
                yield _resolved(np.frombuffer(data, dtype), ref)
        else:
            _refuse_unfolding(chunk, dtype.itemsize)
            for part in _in_c_order(chunk, dtype.itemsize):
                yield chunk_values(reader, ref, part).reshape(-1)


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


def _in_c_order(chunk: Chunk, itemsize: int) -> Iterator[Chunk]:
    """Parts of at most ``BLOCK`` bytes of values whose elements follow each other in C order."""
    if prod(chunk.shape) * itemsize <= BLOCK:
        yield chunk
        return
    axis = next(i for i, size in enumerate(chunk.shape) if size > 1)
    half, size = chunk.shape[axis] // 2, chunk.shape[axis]
    for part in (range(half), range(half, size)):
        yield from _in_c_order(narrowed(chunk, axis, part, itemsize), itemsize)


def _in_order(ref: TensorRef) -> bool:
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


def strided(data: bytes | bytearray, chunk: Chunk, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The bytes of a chunk as an array with its shape and strides; writes go into ``data``."""
    import numpy as np

    strides = tuple(stride * dtype.itemsize for stride in chunk.strides)
    return np.ndarray(chunk.shape, dtype, data, strides=strides)


def chunk_values(reader: TensorReader, ref: TensorRef, chunk: Chunk) -> np.ndarray[Any, Any]:
    """A part of a tensor as an array of the part's shape."""
    dtype = element_dtype(ref)
    if chunk.span.nbytes > FAR:
        return _resolved(gather(reader, chunk, dtype), ref)
    return _resolved(strided(reader.read(chunk.span), chunk, dtype), ref)


E4M3_MAX = 448.0
E4M3_ROUNDS_UP = 464.0  # halfway from the largest value to what would be the next
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
        if not _is_integer(wanted) and wanted.itemsize < FLOAT32_BYTES < values.dtype.itemsize:
            values = values.astype(np.float32)
        if wanted.name == "float8_e4m3fn":
            values = values.astype(np.float32).clip(-E4M3_MAX, E4M3_MAX)
        return values.astype(wanted)


class Losses(NamedTuple):
    """What a cast costs."""

    overflowed: int  # values beyond the range of the type: infinite, wrapped, or its largest
    vanished: int  # values other than 0 that become 0
    cut: int = 0  # values that an integer type takes without their fraction

    def __add__(self, other: object) -> Losses:
        if not isinstance(other, Losses):
            return NotImplemented
        return Losses(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


def count_losses(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> Losses:
    """How many values a cast would take beyond the range of the type, down to 0, or cut."""
    import numpy as np

    if values.dtype == wanted:
        return Losses(0, 0)
    given, made = _wide(values), _wide(cast(values, wanted))
    finite = np.isfinite(given)
    cut = np.zeros(1, bool)
    if _is_integer(wanted):
        beyond = (made != np.trunc(given)) | ~finite
        cut = (made != given) & ~beyond
    elif wanted.name == "float8_e4m3fn":
        beyond = (np.abs(given) >= E4M3_ROUNDS_UP) & finite
    else:
        beyond = ~np.isfinite(made) & finite
    masks = (beyond, (made == 0) & (given != 0), cut)
    return Losses(*(int(np.count_nonzero(mask)) for mask in masks))


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu"


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
        dtype = values.dtype
        swapped = ref.byteorder == "big" and dtype.itemsize > 1
        yield (values.byteswap() if swapped else values).tobytes()


def same_values(
    reader: TensorReader, one: TensorRef, other: TensorRef, *, cast_other: bool = False
) -> bool:
    """Whether two tensors are equal, byte for byte, wherever they lie, whatever their strides.

    With ``cast_other`` the second is compared as it would be in the type of the first.
    """
    if one.shape != other.shape:
        return False
    if one.dtype is other.dtype:
        same = one.chunks == other.chunks
        return same or _joined_equal(value_bytes(reader, one), value_bytes(reader, other))
    if not cast_other or one.dtype.numpy is None or other.dtype.numpy is None:
        return False
    wanted = numpy_dtype(one.dtype)
    theirs = (cast(block, wanted).tobytes() for block in blocks(reader, other))
    return _joined_equal(value_bytes(reader, one), theirs)


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

"""Floating values in another type, block by block, and the account of what does not survive it.

A cast is judged by its result: a finite value that became infinite (or NaN, or the largest of a
type without infinities) **overflowed**, a value other than zero that became zero **vanished**. Both
show in the bits of a block at once: where no result is zero and none is as large as the largest,
nothing was lost, and the values are not looked at one by one.

Blocks are cast by a few threads (numpy lets them run side by side) and come out in order, so that
memory does not grow with the tensor; what is cast at the speed of memory goes without threads.
Extraction and promotion cast by the same two functions, :func:`converted` and :func:`side_by_side`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ckptool.dtypes import BY_NAME, DTYPES, DType
from ckptool.formats.base import TensorReader
from ckptool.numerics import BLOCK, blocks, bytes_of, cast, numpy_dtype, value_bytes
from ckptool.tree import TensorRef

if TYPE_CHECKING:
    import numpy as np

Given = TypeVar("Given")
Result = TypeVar("Result")

SCALES = BY_NAME["float8_e8m0fnu"]  # powers of two without zero or sign, which only scale others
CASTABLE = {
    row.name: row for row in DTYPES if row.kind == "float" and row.numpy and row is not SCALES
}

# Types that take their largest value for what is beyond, as torch does it: beyond what.
SATURATING = {"float8_e4m3fn": 464.0}  # halfway from 448 to 480, which would be next

QUICK = {("float32", "bfloat16")}  # casts at the speed of memory, where threads only wait

WORKERS = 2
ROW = 1 << 15  # elements that are looked up at a time
AHEAD = 3  # blocks that are being cast while one is written


class Losses(NamedTuple):
    """How many values a cast does not keep."""

    overflowed: int = 0  # finite, and then infinite, NaN, the largest there is, or wrapped
    vanished: int = 0  # not zero, and then zero
    cut: int = 0  # without the fraction, which integers do not have

    def __add__(self, other: object) -> Losses:
        if not isinstance(other, Losses):
            return NotImplemented
        return Losses(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


def losses_between(given: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> Losses:
    """What became of the values of ``given`` in ``made``, which has them in another type."""
    import numpy as np

    if not made.size or given.dtype == made.dtype:
        return Losses()
    if made.dtype.kind in "iu":
        return _cut_to_integers(given, made)
    magnitudes = _magnitudes(made)
    largest = _largest(made.dtype.newbyteorder("="))
    if magnitudes.min() > 0 and magnitudes.max() < largest:
        return Losses()
    odd = np.flatnonzero((magnitudes == 0) | (magnitudes >= largest))
    with np.errstate(invalid="ignore"):  # signalling NaN
        before, after = (part.reshape(-1)[odd].astype(np.float64) for part in (given, made))
    beyond = ~np.isfinite(after) | (np.abs(before) > SATURATING.get(made.dtype.name, np.inf))
    return Losses(
        overflowed=int(np.count_nonzero(np.isfinite(before) & beyond)),
        vanished=int(np.count_nonzero((after == 0) & (before != 0))),
    )


def _magnitudes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits without the sign, which are in the order of the absolute values."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    bits: np.ndarray[Any, Any] = values.view(f"{order}u{values.itemsize}")
    return bits & (1 << 8 * values.itemsize - 1) - 1


def _cut_to_integers(given: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> Losses:
    import numpy as np

    before = given.astype(np.float64)
    beyond = (made != np.trunc(before)) | ~np.isfinite(before)
    return Losses(
        overflowed=int(np.count_nonzero(beyond)),
        vanished=int(np.count_nonzero((made == 0) & (before != 0))),
        cut=int(np.count_nonzero((made != before) & ~beyond)),
    )


@cache
def _largest(kind: np.dtype[Any]) -> int:
    """The bits of the largest finite value; infinities and NaN have more, or only the sign."""
    import ml_dtypes
    import numpy as np

    return int(_magnitudes(np.array([ml_dtypes.finfo(kind).max], kind))[0])


class Casting:
    """What floating tensors become on their way into a file: a type, or without one themselves.

    Integers, booleans, complex and packed values and scales stay as they are.
    """

    def __init__(self, wanted: DType | None = None) -> None:
        self.wanted = wanted
        self.losses: dict[str, Losses] = {}  # of the tensors that lost something

    def dtype_of(self, ref: TensorRef) -> DType:
        """The type in which a tensor is written."""
        return self.wanted if self.wanted and ref.dtype.name in CASTABLE else ref.dtype

    def is_cast(self, ref: TensorRef) -> bool:
        """Whether the values change their type."""
        return self.dtype_of(ref) is not ref.dtype

    def nbytes_of(self, ref: TensorRef) -> int:
        """Bytes of the values as they are written."""
        return ref.numel * self.wanted.itemsize if self.wanted and self.is_cast(ref) else ref.nbytes

    def blocks(
        self, reader: TensorReader, name: str, ref: TensorRef
    ) -> Iterator[bytes | memoryview]:
        """The values in C order, little-endian, as they are written; counts what is lost."""
        wanted = self.dtype_of(ref)
        if wanted is ref.dtype:
            yield from value_bytes(reader, ref)
            return
        lost = Losses()
        for block in _cast_blocks(reader, ref, wanted):
            lost += block.lost
            yield block.data
        if any(lost):
            self.losses[name] = lost


class _Block(NamedTuple):
    data: memoryview
    lost: Losses


def _cast_blocks(reader: TensorReader, ref: TensorRef, wanted: DType) -> Iterator[_Block]:
    def cast_one(values: np.ndarray[Any, Any]) -> _Block:
        made, lost = converted(values, numpy_dtype(wanted))
        return _Block(bytes_of(made), lost)

    given = blocks(reader, ref)
    is_quick = ref.nbytes <= AHEAD * BLOCK or (ref.dtype.name, wanted.name) in QUICK
    return map(cast_one, given) if is_quick else side_by_side(cast_one, given)


def side_by_side(work: Callable[[Given], Result], given: Iterable[Given]) -> Iterator[Result]:
    """``map`` by several threads, with at most ``AHEAD`` results waiting."""
    from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415

    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for each in given:
            waiting.append(pool.submit(work, each))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def converted(
    values: np.ndarray[Any, Any], wanted: np.dtype[Any]
) -> tuple[np.ndarray[Any, Any], Losses]:
    """Real numbers in another type, as an array in C order, and what the cast has cost."""
    import numpy as np

    narrow = wanted.itemsize == 1 and wanted.kind not in "iu" and values.dtype == np.dtype("<f4")
    made = _by_table(values, wanted) if narrow else cast(values, wanted)
    made = np.ascontiguousarray(made)
    return made, losses_between(values, made)


def _by_table(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """float32 values in 8 bits, four times as fast as one by one.

    The upper half of a float32, its last bit set when anything is below it (rounding to odd),
    rounds like the whole to all types with fewer bits: there are only 65,536 of them.
    """
    import numpy as np

    bits = values.view("<u4")
    halves = (bits >> 16).astype("<u2")
    halves |= bits.astype("<u2") != 0
    made: np.ndarray[Any, Any] = np.empty(halves.shape, wanted)
    for start in range(0, len(halves), ROW):  # places are looked up as words of 64 bits
        part = slice(start, start + ROW)
        np.take(_table(wanted), halves[part], out=made[part], mode="clip")
    return made


@cache
def _table(wanted: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """What each bfloat16 becomes."""
    import numpy as np

    every = np.arange(1 << 16, dtype="<u2").view(numpy_dtype(BY_NAME["bfloat16"]))
    return cast(every, wanted)

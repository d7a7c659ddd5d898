"""Floating values in another type, block by block, and the account of what does not survive it.

A cast is judged by its result: a finite value that became infinite (or NaN, or the largest of a
type without infinities) **overflowed**, a value other than zero that became zero **vanished**. Both
show in the bits of a block at once: where none is as large as the largest, only zeros are counted,
before and after, and the values are not looked at one by one.

Extraction and promotion cast by the same two functions: :func:`converted`, and
:func:`side_by_side`, which lets a few threads work on blocks whose results come out in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cache
from threading import local
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ckptool.dtypes import BY_NAME, DTYPES, DType
from ckptool.numerics import BLOCK, cast
from ckptool.rounding import WORTH_IT, ZERO_OR_NAN, is_rounded, rounded
from ckptool.tree import TensorRef

if TYPE_CHECKING:
    import numpy as np

Given = TypeVar("Given")
Result = TypeVar("Result")

SCALES = BY_NAME["float8_e8m0fnu"]  # powers of two without zero or sign, which only scale others
CASTABLE = {
    row.name: row for row in DTYPES if row.kind == "float" and row.numpy and row is not SCALES
}
# What people call them, beside the names of torch.
ALSO = {
    "double": "float64", "fp64": "float64", "float": "float32", "fp32": "float32",
    "half": "float16", "fp16": "float16", "bf16": "bfloat16",
}  # fmt: skip

# Types that take their largest value for what is beyond, as torch does it: beyond what.
SATURATING = {"float8_e4m3fn": 464.0}  # halfway from 448 to 480, which would be next

WORKERS = 2
BATCH = 1 << 20  # bytes that a thread takes at a time
AHEAD = 3  # batches that are being cast while one is written


class Losses(NamedTuple):
    """How many values a cast does not keep."""

    overflowed: int = 0  # finite, and then infinite, NaN, the largest there is, or wrapped
    vanished: int = 0  # not zero, and then zero
    cut: int = 0  # without the fraction, which integers do not have

    def __add__(self, other: object) -> Losses:
        if not isinstance(other, Losses):
            return NotImplemented
        return Losses(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


def _losses(given: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> tuple[Losses, bool]:
    """What became of ``given`` in another type, and whether its values are surely finite."""
    import numpy as np

    if not made.size or given.dtype == made.dtype:
        return Losses(), not made.size
    if made.dtype.kind in "iu":
        return _cut_to_integers(given, made), False
    magnitudes = _magnitudes(made)
    largest = _largest(made.dtype.newbyteorder("="))
    if magnitudes.max() < largest and not made.dtype.name.endswith(ZERO_OR_NAN):
        if magnitudes.min():
            return Losses(), True
        zeros = made.size - int(np.count_nonzero(magnitudes))
        return Losses(vanished=zeros - int(np.count_nonzero(given == 0))), True
    odd = np.flatnonzero((magnitudes == 0) | (magnitudes >= largest))
    with np.errstate(invalid="ignore"):  # signalling NaN
        before, after = (part.reshape(-1)[odd].astype(np.float64) for part in (given, made))
    beyond = ~np.isfinite(after) | (np.abs(before) > SATURATING.get(made.dtype.name, np.inf))
    lost = Losses(
        overflowed=int(np.count_nonzero(np.isfinite(before) & beyond)),
        vanished=int(np.count_nonzero((after == 0) & (before != 0))),
    )
    return lost, bool(np.isfinite(before).all())


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

    def dtype_of(self, ref: TensorRef) -> DType:
        """The type in which a tensor is written."""
        return self.wanted if self.wanted and ref.dtype.name in CASTABLE else ref.dtype

    def is_cast(self, ref: TensorRef) -> bool:
        """Whether the values change their type."""
        return self.dtype_of(ref) is not ref.dtype

    def nbytes_of(self, ref: TensorRef) -> int:
        """Bytes of the values as they are written."""
        return ref.numel * self.wanted.itemsize if self.wanted and self.is_cast(ref) else ref.nbytes


_ROOM = local()


def room() -> memoryview:
    """Memory of this thread, for what is read and cast at once: new memory is far and cleared."""
    if not hasattr(_ROOM, "bytes"):
        _ROOM.bytes = memoryview(bytearray(BLOCK))
    given: memoryview = _ROOM.bytes
    return given


def side_by_side(
    work: Callable[[Given], Result], given: Iterable[Given], nbytes_of: Callable[[Given], int]
) -> Generator[Result]:
    """``map`` by several threads, with at most ``AHEAD`` batches of results waiting.

    ``nbytes_of`` says how much there is to each: handing over a small one costs as much as doing
    it, so that they go together. When it is closed, no thread is at work any more.
    """
    from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415

    def work_all(batch: list[Given]) -> list[Result]:
        return [work(each) for each in batch]

    waiting: deque[Future[list[Result]]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for batch in _batches(given, nbytes_of):
            waiting.append(pool.submit(work_all, batch))
            if len(waiting) > AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _batches(given: Iterable[Given], nbytes_of: Callable[[Given], int]) -> Iterator[list[Given]]:
    """About ``BATCH`` bytes together."""
    batch: list[Given] = []
    room = BATCH
    for each in given:
        nbytes = nbytes_of(each)
        if batch and nbytes > room:
            yield batch
            batch, room = [], BATCH
        batch.append(each)
        room -= nbytes
    if batch:
        yield batch


class Converted(NamedTuple):
    """Values in another type."""

    values: np.ndarray[Any, Any]  # in C order
    lost: Losses
    were_finite: bool  # surely


def converted(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> Converted:
    """Real numbers in another type, and what the cast has cost."""
    import numpy as np

    is_quick = values.size >= WORTH_IT and is_rounded(values.dtype, wanted)
    made = _by_arithmetic(values, wanted) if is_quick else cast(values, wanted)
    made = np.ascontiguousarray(made)
    return Converted(made, *_losses(values, made))


def _by_arithmetic(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """What :func:`~ckptool.numerics.cast` makes of many floating values, sooner."""
    import numpy as np

    singles = np.ascontiguousarray(cast(values, np.dtype("<f4"))).reshape(-1)
    made, left = rounded(singles, wanted)
    for row in left:
        made[row] = cast(singles[row], wanted)
    return made.reshape(values.shape)

"""Casts of floating values to another dtype, block by block, and counts of the values they lose.

A cast is judged by its result. A value **overflowed** if it was finite and became infinite (or NaN,
or the largest value of a dtype without infinities). A value **vanished** if it was not zero and
became zero. Both show in the bits of a block at once: if no value of the block is as large as the
largest finite one, only zeros are counted, before and after, and no values are compared one by one.

Extraction and promotion cast by the same two functions: :func:`converted`, and
:func:`side_by_side`, which runs work on blocks in a few threads and yields the results in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from ckptool.dtypes import BY_NAME, DTYPES, DType
from ckptool.records import NamedTuple
from ckptool.sources.base import Source
from ckptool.tensors.blocks import cast, in_batches
from ckptool.tree.nodes import TensorRef

if TYPE_CHECKING:
    import numpy as np

Given = TypeVar("Given")
Result = TypeVar("Result")

SCALES = BY_NAME["float8_e8m0fnu"]  # powers of two without zero or sign, which only scale others
CASTABLE = {
    row.name: row for row in DTYPES if row.kind == "float" and row.numpy and row is not SCALES
}
# Common names of these dtypes besides those of torch.
ALSO = {
    "double": "float64", "fp64": "float64", "float": "float32", "fp32": "float32",
    "half": "float16", "fp16": "float16", "bf16": "bfloat16",
}  # fmt: skip

ZERO_OR_NAN = "fnuz"  # part of the names of dtypes in which zero with a sign is NaN

# Dtypes in which larger values become the largest one, as torch does it, and from which value on.
SATURATING = {"float8_e4m3fn": 464.0}  # halfway from 448 to 480, which would be next

WORKERS = 2
BATCH = 1 << 20  # bytes that a thread takes at a time
AHEAD = 3  # batches that are being cast while one is written


@dataclass(frozen=True, slots=True)
class Losses:
    """Counts of the values that a cast does not keep."""

    overflowed: int = 0  # were finite; became infinite, NaN or the largest value, or wrapped
    vanished: int = 0  # were not zero; became zero
    cut: int = 0  # lost their fraction, which integers do not have

    def __add__(self, other: Losses) -> Losses:
        return Losses(
            self.overflowed + other.overflowed, self.vanished + other.vanished, self.cut + other.cut
        )

    def __bool__(self) -> bool:
        return self != Losses()


def _losses(given: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> tuple[Losses, bool]:
    """Count the losses of a cast, and return whether the values are surely finite."""
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
    """Return the bits without the sign, which are in the order of the absolute values."""
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
    """Return the largest finite value's bits; infinities and NaN have more, or only the sign."""
    import ml_dtypes
    import numpy as np

    return int(_magnitudes(np.array([ml_dtypes.finfo(kind).max], kind))[0])


# The bytes at which a tensor begins: source, offset, and whether it has any. Tensors that overlap
# are cast together (see writers/torch_zip.py), so those that begin together have one dtype.
Start = tuple[Source, int, bool]


def start_of(ref: TensorRef) -> Start | None:
    """Return the place at which a tensor's values begin; None if it has none."""
    if not ref.chunks:
        return None
    span = ref.chunks[0].span
    return span.source, span.offset, span.nbytes > 0


class Casting:
    """The dtype in which floating tensors are written; without ``wanted``, their own.

    Integers, booleans, complex and packed values and scales stay as they are.
    """

    def __init__(
        self, wanted: DType | None = None, exceptions: Mapping[Start | None, DType] | None = None
    ) -> None:
        self.wanted = wanted
        self._exceptions = exceptions or {}

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The dtypes that are asked for, each once."""
        asked = (*filter(None, (self.wanted,)), *self._exceptions.values())
        return tuple(dict.fromkeys(asked))

    def dtype_of(self, ref: TensorRef) -> DType:
        """Return the dtype in which a tensor is written."""
        wanted = self.wanted
        if self._exceptions:
            wanted = self._exceptions.get(start_of(ref), wanted)
        return wanted if wanted and ref.dtype.name in CASTABLE else ref.dtype

    def is_asked(self, ref: TensorRef) -> bool:
        """Return whether a dtype is asked for, be it the tensor's own."""
        return self.wanted is not None or start_of(ref) in self._exceptions

    def is_cast(self, ref: TensorRef) -> bool:
        """Return whether the values change their dtype."""
        return self.dtype_of(ref) is not ref.dtype

    def nbytes_of(self, ref: TensorRef) -> int:
        """Return the size of the values as they are written, in bytes."""
        wanted = self.dtype_of(ref)
        return ref.nbytes if wanted is ref.dtype else ref.numel * wanted.itemsize


def side_by_side(
    work: Callable[[Given], Result], given: Iterable[Given], nbytes_of: Callable[[Given], int]
) -> Generator[Result]:
    """Map ``work`` over ``given`` in threads; at most ``AHEAD`` batches of results wait.

    ``nbytes_of`` gives the size of each item. Handing over a small item costs as much as working on
    it, so small items go together. When the generator is closed, no thread works any more.
    """
    from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415

    def work_all(batch: list[Given]) -> list[Result]:
        return [work(each) for each in batch]

    waiting: deque[Future[list[Result]]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for batch in in_batches(given, nbytes_of, BATCH):
            waiting.append(pool.submit(work_all, batch))
            if len(waiting) > AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


class Converted(NamedTuple):
    """Values in another dtype, and the losses of the cast."""

    values: np.ndarray[Any, Any]  # in C order
    lost: Losses
    were_finite: bool  # True is certain


def converted(values: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> Converted:
    """Cast real numbers to another dtype, and count the losses."""
    import numpy as np

    made = np.ascontiguousarray(cast(values, wanted))
    return Converted(made, *_losses(values, made))

"""What a few values say: read only when needed, and never more than ``BUDGET`` bytes.

Names and addresses lie; values do not. A sample of the beginnings of evenly spread tensors tells
an average that was never updated (identical), one that is no average at all (unrelated), and which
of several orders fits an unnamed list. The arithmetic is plain Python on a few thousand numbers,
so that looking at a checkpoint needs no numpy and takes milliseconds.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from functools import cached_property
from struct import Struct, pack, unpack
from typing import Any, NamedTuple, TypeVar

from ckptool.formats.base import TensorReader
from ckptool.tree import TensorRef

BUDGET = 1 << 20  # bytes read from either side
PER_TENSOR = 1 << 12
MAX_TENSORS = 16
CAREFUL = 256  # tensors, where a wrong answer would choose between two averages
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it spread evenly over 0 to 1
UNRELATED = 0.9  # relative distance from here on: no average of these weights

_SCALAR_CODES = {
    "float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h",
    "int8": "b", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "bool": "?",
}  # fmt: skip

Pair = tuple[TensorRef, TensorRef]  # (the model's, the average's)
Item = TypeVar("Item")


class Agreement(NamedTuple):
    """How a sample of the model's values compares with the average's."""

    compared: int  # tensors
    equal: int  # of them, by value
    distance: float | None  # ‖average - model‖ / ‖model‖ over the sample; None: nothing comparable
    finite: bool = True  # no NaN or infinity in the sample of the average

    @property
    def identical(self) -> bool:
        """Everything that was compared is equal, and something was."""
        return 0 < self.compared == self.equal

    @property
    def unrelated(self) -> bool:
        """The values have nothing to do with each other."""
        return self.distance is not None and self.distance >= UNRELATED


class Evidence:
    """Pairs whose values can be compared; nothing is read before somebody asks."""

    def __init__(self, reader: TensorReader, pairs: Sequence[Pair]) -> None:
        self._reader, self.pairs = reader, pairs

    @cached_property
    def agreement(self) -> Agreement:
        """How the averages, in the types of the model, compare with it."""
        return compare_sample(self._reader, self.pairs, cast=True)


def compare_sample(
    reader: TensorReader,
    pairs: Sequence[Pair],
    tensors: int = MAX_TENSORS,
    *,
    cast: bool = False,
) -> Agreement:
    """Compare the beginnings of evenly spread pairs of floating-point tensors.

    With ``cast`` the second of a pair is compared as it would be in the type of the first.
    """
    usable = [pair for pair in pairs if all(map(is_readable, pair))]
    compared = equal = 0
    off = norm = 0.0
    finite = True
    for ours, theirs in spread(usable, tensors):
        mine, yours = beginning(reader, ours), beginning(reader, theirs)
        compared += 1
        equal += _is_equal(mine, yours, ours.dtype.name if cast else theirs.dtype.name)
        difference, size = _squares(mine, yours)
        finite = finite and all(map(math.isfinite, yours))
        off, norm = off + difference, norm + size
    is_told = norm > 0 and math.isfinite(off) and math.isfinite(norm)  # squares may overflow
    distance = math.sqrt(off / norm) if is_told else None
    return Agreement(compared, equal, distance, finite)


def _is_equal(mine: Sequence[float], yours: Sequence[float], dtype: str) -> bool:
    """Whether both begin with the same numbers, once the second are of the given type."""
    count = min(len(mine), len(yours))
    try:
        return list(mine[:count]) == list(_in_type(dtype, yours[:count]))
    except OverflowError:
        return False


def spread(pairs: Sequence[Item], count: int) -> Sequence[Item]:
    """At most ``count``, spread, but not every n-th: layers repeat; all would be biases."""
    if len(pairs) <= count:
        return pairs
    places = {int(i * GOLDEN % 1 * len(pairs)) for i in range(count)}
    return [pairs[place] for place in sorted(places)]


def distance(reader: TensorReader, one: TensorRef, other: TensorRef, limit: int = 256) -> float:
    """Relative distance of the first values of two tensors; infinite where it cannot be told."""
    if not (is_readable(one) and is_readable(other)):
        return math.inf
    difference, size = _squares(beginning(reader, one, limit), beginning(reader, other, limit))
    if difference == 0:
        return 0.0
    is_told = size > 0 and math.isfinite(difference) and math.isfinite(size)
    return math.sqrt(difference / size) if is_told else math.inf


def is_readable(ref: TensorRef) -> bool:
    """Whether the beginning of a tensor can be read as numbers without more ado."""
    name = ref.dtype.name
    known = name in {"float64", "float32", "float16", "bfloat16"}
    return known and ref.numel > 0 and ref.is_stored_plainly


def beginning(reader: TensorReader, ref: TensorRef, limit: int = PER_TENSOR) -> Sequence[float]:
    """The first values of a tensor, at most ``limit`` bytes of them."""
    span = ref.chunks[0].span
    count = min(limit, span.nbytes)
    data = reader.read(span, 0, count - count % ref.dtype.itemsize)
    return _numbers(ref.dtype.name, data)


def _numbers(dtype: str, data: bytes) -> Sequence[float]:
    if dtype == "bfloat16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
        return array("f", data)
    if dtype == "float16":
        return unpack(f"<{len(data) // 2}e", data)
    return array("d" if dtype == "float64" else "f", data)


def _in_type(dtype: str, numbers: Sequence[float]) -> Sequence[float]:
    """The numbers as a tensor of another type would hold them, rounded to the nearest, ties even.

    Raises:
        OverflowError: one is beyond the type.
    """
    if dtype == "float64":
        return array("d", numbers)
    if dtype == "float16":
        return unpack(f"<{len(numbers)}e", pack(f"<{len(numbers)}e", *numbers))
    single = array("f", numbers)
    if dtype == "float32":
        return single
    bits = (bit + 0x7FFF + (bit >> 16 & 1) & 0xFFFF0000 for bit in array("I", single.tobytes()))
    return array("f", array("I", bits).tobytes())


def _squares(mine: Sequence[float], yours: Sequence[float]) -> tuple[float, float]:
    """(squared distance, squared norm of the first), over as many values as both have."""
    pairs = list(zip(mine, yours, strict=False))
    # Products, since a power that overflows raises an error.
    return sum((b - a) * (b - a) for a, b in pairs), sum(a * a for a, _ in pairs)


def scalar_value(reader: TensorReader, value: Any) -> Any:
    """A one-element tensor as a Python number; anything else as it is."""
    if not isinstance(value, TensorRef) or value.numel != 1 or len(value.chunks) != 1:
        return value
    code = _SCALAR_CODES.get(value.dtype.name)
    if code is None:
        return value
    order = "<" if value.byteorder == "little" else ">"
    return Struct(order + code).unpack(reader.read(value.chunks[0].span))[0]

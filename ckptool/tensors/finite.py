"""Tests that no value in some bytes is NaN, infinite or extreme, of one tensor or of many at once.

A test that says yes is certain. What it suspects is counted by ``statistics.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ckptool.dtypes import DType
from ckptool.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# The largest finite float16. Values that overflowed and were then clamped (``nan_to_num``) are
# exactly this, and still are after a cast to a wider dtype.
SATURATED = 65504.0
# No weight of a network is as large: float32 squares overflow from 1.8e19 on.
HUGE = 1e15

# The first extreme value's bits without the sign, for dtypes that numpy compares slowly.
EXTREME_BITS = {"float16": 0x7BFF, "bfloat16": 0x5863}
COMPARED = frozenset({"float32", "float64"})
_SUMMED = frozenset({"complex64", "complex128"})
SIGNLESS = 0x7FFF


class Values(NamedTuple):
    """Findings of a test on the values of a tensor. True is certain, False is not."""

    is_finite: bool = True
    is_varied: bool = False  # not all are equal; a NaN equals none


class FiniteTest(ABC):
    """A test of values of one dtype; bytes behind the last whole value are not looked at."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        self._kind = kind

    def __call__(self, data: memoryview) -> bool:
        """Return whether no value is NaN, infinite or extreme."""
        values = self._values(data)
        return not values.size or self._is_ordinary(values)

    def of_each(self, data: memoryview, places: Iterable[tuple[int, int]]) -> Sequence[Values]:
        """Return what is found of the values in each place (from, to) of some bytes."""
        return [Values(self(data[start:stop])) for start, stop in places]

    def _values(self, data: memoryview) -> Array:
        import numpy as np

        return np.frombuffer(data[: len(data) - len(data) % self._kind.itemsize], self._kind)

    @abstractmethod
    def _is_ordinary(self, values: Array) -> bool:
        """Return whether one or more values are neither NaN, nor infinite, nor extreme."""


class _BySum(FiniteTest):
    """Complex numbers have no order: their sum is finite only if all are."""

    def _is_ordinary(self, values: Array) -> bool:
        import numpy as np

        with np.errstate(all="ignore"):
            return bool(np.isfinite(values.sum()))


class _ByRange(FiniteTest):
    """The least and the largest value: they are NaN if a value is, and cost less than a sum."""

    def _is_ordinary(self, values: Array) -> bool:
        import numpy as np

        with np.errstate(all="ignore"):
            return bool(self._is_usual(values.min(), values.max()))

    def of_each(self, data: memoryview, places: Iterable[tuple[int, int]]) -> Sequence[Values]:
        """Return what is found in each place; those that are in step, by two calls for all."""
        import numpy as np

        places, width = list(places), self._kind.itemsize
        found = [Values()] * len(places)
        starts, stops = np.array(places, np.intp).reshape(-1, 2).T
        is_apart = starts % width != 0
        for at in np.flatnonzero(is_apart).tolist():
            found[at] = Values(self(data[slice(*places[at])]))
        starts, stops = starts // width, starts // width + (stops - starts) // width
        together = np.flatnonzero(~is_apart & (starts < stops))
        edges = np.stack((starts[together], stops[together]), 1).reshape(-1)
        if edges.size:
            values = self._values(data)
            values = np.append(values, values[-1:])  # an edge may be the end
            with np.errstate(all="ignore"):
                lows = np.minimum.reduceat(values, edges)[::2]
                highs = np.maximum.reduceat(values, edges)[::2]
            pairs = zip(self._is_usual(lows, highs).tolist(), (lows != highs).tolist(), strict=True)
            for nth, pair in zip(together.tolist(), pairs, strict=True):
                found[nth] = Values(*pair)
        return found

    @abstractmethod
    def _is_usual(self, low: Any, high: Any) -> Any:
        """Return whether all values between are neither NaN, nor infinite, nor extreme."""


class _ByValue(_ByRange):
    def _is_usual(self, low: Any, high: Any) -> Any:
        low, high = low.astype("f8"), high.astype("f8")
        is_below = (high < HUGE) & (high != SATURATED)
        return (low > -HUGE) & (low != -SATURATED) & is_below


class _ByBits(_ByRange):
    """Bits without the sign, whose order is that of the magnitudes."""

    def __init__(self, kind: np.dtype[Any], first_extreme: int) -> None:
        super().__init__(kind)
        self._first_extreme = first_extreme

    def _values(self, data: memoryview) -> Array:
        bits: Array = super()._values(data) & SIGNLESS
        return bits

    def _is_usual(self, low: Any, high: Any) -> Any:  # noqa: ARG002 - the magnitude alone counts
        return high < self._first_extreme


@cache
def finite_test(dtype: DType, byteorder: str = "little") -> FiniteTest | None:
    """Return the test for a dtype; None if there is no fast one.

    If it returns False, count with ``nonfinite_values`` and ``extreme_values``.
    """
    import numpy as np

    order = "<" if byteorder == "little" else ">"
    if dtype.name in COMPARED | _SUMMED:
        kind = np.dtype(dtype.numpy).newbyteorder(order)  # type: ignore[arg-type]
        return _ByValue(kind) if dtype.name in COMPARED else _BySum(kind)
    first_extreme = EXTREME_BITS.get(dtype.name)
    if first_extreme is None:
        return None
    return _ByBits(np.dtype(f"{order}u2"), first_extreme)

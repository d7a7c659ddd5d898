"""Sampled comparison of EMA weights with the model's: at most ``BUDGET`` bytes, read when needed.

Names and key paths lie; values do not. A sample holds the beginnings of tensors that are spread
over the state dict. It shows whether EMA weights were never updated (identical to the model) or are
no average of the model (unrelated), and which of several orders fits an unnamed list. The
arithmetic is plain Python on a few thousand numbers, so that ``inspect`` needs no numpy and takes
milliseconds.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from functools import cached_property
from operator import mul, sub
from struct import pack, unpack

from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.tensors.sample import announce, beginning, gather, has_beginning, is_readable, spread
from ckptool.tree.nodes import TensorRef

BUDGET = 1 << 20  # bytes read from either side
MAX_TENSORS = 16
CAREFUL = 256  # tensors to compare where a wrong answer would choose between two EMAs
UNRELATED = 0.9  # relative distance from which on weights are no EMA of the others

Pair = tuple[TensorRef, TensorRef]  # (the model's, the EMA's)


class Agreement(NamedTuple):
    """Result of comparing a sample of the model's values with the EMA's."""

    compared: int  # tensors
    equal: int  # of them, by value
    distance: float | None  # ‖EMA - model‖ / ‖model‖ over the sample; None: nothing comparable
    finite: bool = True  # no NaN or infinity in the sample of the EMA
    left_out: bool = False  # there are values, but a frugal source admitted none of them
    why: str = ""  # why no distance is told although there are values

    @property
    def identical(self) -> bool:
        """Return whether tensors were compared and all of them are equal."""
        return 0 < self.compared == self.equal

    @property
    def unrelated(self) -> bool:
        """Return whether the values have nothing to do with each other."""
        return self.distance is not None and self.distance >= UNRELATED


class Evidence:
    """Pairs whose values can be compared; nothing is read before the comparison is asked for."""

    def __init__(self, reader: TensorReader, pairs: Sequence[Pair]) -> None:
        self._reader, self.pairs = reader, pairs

    @cached_property
    def agreement(self) -> Agreement:
        """The comparison of the EMA weights, cast to the model's dtypes, with the model."""
        return compare_sample(self._reader, self.pairs, cast=True)


def compare_sample(
    reader: TensorReader, pairs: Sequence[Pair], tensors: int = MAX_TENSORS, *, cast: bool = False
) -> Agreement:
    """Compare the beginnings of spread pairs of floating-point tensors.

    With ``cast`` the second of a pair is compared after a cast to the dtype of the first. Some
    tensors, often batch statistics, still have their initial value in the second. They count as
    unequal, but not in the distance, since they say nothing about the weights. In the distance a
    tensor has the weight of all its elements, of which the beginning is taken to be typical.
    """
    gather(pairs)
    usable = [pair for pair in pairs if all(map(is_readable, pair))]
    chosen = spread(usable, tensors)
    announce(reader, (ref for pair in chosen for ref in pair))
    if not chosen and any(all(map(has_beginning, pair)) for pair in pairs):
        return Agreement(0, 0, None, left_out=True, why=MANY_REQUESTS)
    compared = equal = 0
    off = norm = 0.0
    initial: list[tuple[float, float]] = []  # of tensors never updated in the EMA
    finite = True
    for ours, theirs in chosen:
        mine, yours = beginning(reader, ours), beginning(reader, theirs)
        compared += 1
        equal += _is_equal(mine, yours, ours.dtype.name if cast else theirs.dtype.name)
        share = ours.numel / (min(len(mine), len(yours)) or 1)
        difference, size = (share * square for square in _squares(mine, yours))
        finite = finite and all(map(math.isfinite, yours))
        if len(ours.shape) < 2 and is_constant(yours) and not is_constant(mine):
            initial.append((difference, size))
        else:
            off, norm = off + difference, norm + size
    if norm == 0:  # there are no other tensors
        off, norm = sum(a for a, _ in initial), sum(b for _, b in initial)
    is_finite = math.isfinite(off) and math.isfinite(norm)  # squares may overflow
    if is_finite and norm > 0:
        return Agreement(compared, equal, math.sqrt(off / norm), finite)
    why = (ALL_ZERO if is_finite else NON_FINITE) if compared else ""
    return Agreement(compared, equal, None, finite, why=why)


# Reasons for which values have no distance.
MANY_REQUESTS = "the sample would take many requests over the network"
NON_FINITE = "NaN, infinite or huge values in the sample"
ALL_ZERO = "the model's values in the sample are all 0"


def _is_equal(mine: Sequence[float], yours: Sequence[float], dtype: str) -> bool:
    """Return whether both begin with the same numbers after a cast of the second to ``dtype``."""
    count = min(len(mine), len(yours))
    try:
        return list(mine[:count]) == list(_in_type(dtype, yours[:count]))
    except OverflowError:
        return False


def is_constant(numbers: Sequence[float]) -> bool:
    """Return whether all are 0 or all are 1, as in a newly made layer."""
    return len(numbers) > 0 and numbers[0] in {0.0, 1.0} and is_everywhere(numbers[0], numbers)


def is_everywhere(number: float, numbers: Sequence[float]) -> bool:
    """Return whether all are the number."""
    return numbers.count(number) == len(numbers)


def distance(reader: TensorReader, one: TensorRef, other: TensorRef, limit: int = 256) -> float:
    """Return the relative distance of the first values of two tensors; infinite if unknown."""
    if not (is_readable(one) and is_readable(other)):
        return math.inf
    difference, size = _squares(beginning(reader, one, limit), beginning(reader, other, limit))
    if difference == 0:
        return 0.0
    is_told = size > 0 and math.isfinite(difference) and math.isfinite(size)
    return math.sqrt(difference / size) if is_told else math.inf


def _in_type(dtype: str, numbers: Sequence[float]) -> Sequence[float]:
    """Return the numbers cast to ``dtype``, rounded to nearest, ties to even.

    Raises:
        OverflowError: a number is beyond the range of the dtype.
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
    """Return the squared distance and the squared norm of the first, over their common length."""
    off = list(map(sub, yours, mine))
    # Products overflow to infinity; a power raises an error.
    return sum(map(mul, off, off)), sum(map(mul, mine, mine[: len(off)]))

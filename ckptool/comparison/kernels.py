"""The arithmetic of a comparison: one set of kernels for numpy and torch.

A kernel takes the array namespace (the module ``numpy`` or ``torch``) and two flat arrays, and
returns a :class:`Partial`: numbers about one run of elements, which :func:`merged` adds up. Only
functions that both modules have under one name are used, so that a GPU runs the same lines.

* Floating-point numbers are compared as float64, in which differences of all shorter types are
  exact or rounded once. Sums are those of the elements that are finite on both sides.
* Integers are compared as int64, bit for bit: beyond 2^53 too. uint64 comes with its top bit
  flipped, which keeps the order.
* Types of one byte have only 65,536 pairs: they are counted, and the numbers follow from the
  counts.

NaN equals NaN in the same place, and an infinity itself; against anything else they differ, are
counted (``nonfinite``), and no tolerance covers them. -0.0 equals 0.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ckptool.comparison.tolerances import Tolerance

Array = Any
Namespace = Any  # the module numpy or torch
Near = Callable[[], Array] | None  # gives the mask of the elements within ``rule.ulp``

TINY = 5e-324  # makes 0/0 a 0 and changes no other quotient
TOP = -(1 << 63)
WORD = 1 << 64
HALF = float(1 << 32)
ROW = 1 << 13  # elements of an inner product; OpenBLAS starts threads above 10,000
FURTHEST = 2.0  # |a - b| / max(|a|, |b|) is never more


class Sums(NamedTuple):
    """Over the elements of a run that are finite on both sides."""

    finite: int = 0  # how many there are
    distance: float = 0.0
    distance_sq: float = 0.0
    a_sq: float = 0.0
    b_sq: float = 0.0
    dot: float = 0.0  # of a and b; of complex numbers the real part


class Partial(NamedTuple):
    """Numbers about a run of elements."""

    elements: int
    differing: int = 0
    beyond: int = 0  # differing, and not within the tolerance
    nonfinite: int = 0  # differing, and not finite on a side
    at: int = -1  # where the worst lies: the first that is not finite, else the largest difference
    max_abs: float = 0.0  # an int for integers
    max_rel: float = 0.0  # |a - b| / max(|a|, |b|)
    sums: Sums = Sums()

    @property
    def rank(self) -> tuple[bool, float]:
        """What makes one worse than another; of two that are not finite, the first is."""
        return (self.nonfinite > 0, self.max_abs if self.at >= 0 and not self.nonfinite else -1)


def merged(first: Partial, second: Partial, offset: int) -> Partial:
    """Two runs as one; ``offset`` is where the second begins."""
    return Partial(
        elements=first.elements + second.elements,
        differing=first.differing + second.differing,
        beyond=first.beyond + second.beyond,
        nonfinite=first.nonfinite + second.nonfinite,
        at=second.at + offset if second.rank > first.rank else first.at,
        max_abs=max(first.max_abs, second.max_abs),
        max_rel=max(first.max_rel, second.max_rel),
        sums=Sums(*(x + y for x, y in zip(first.sums, second.sums, strict=True))),  # type: ignore[arg-type]
    )


# ------------------------------------------------------------------------------------------- floats


def floats(xp: Namespace, a: Array, b: Array, rule: Tolerance, near: Near, room: Array) -> Partial:
    """Two float64 arrays, which are overwritten, as is ``room``, an array as long."""
    distance = xp.subtract(a, b, out=room)
    sum_sq = _dot(xp, distance, distance)
    if not math.isfinite(sum_sq):
        return careful(xp, a, b, rule, near, _same(xp, a, b))
    sums = Sums(len(a), 0.0, sum_sq, _dot(xp, a, a), _dot(xp, b, b), _dot(xp, a, b))
    xp.abs(distance, out=distance)
    at = int(distance.argmax())
    worst = float(distance[at])
    if not worst:
        return Partial(len(a), sums=sums)
    larger = xp.maximum(xp.abs(a, out=a), xp.abs(b, out=b), out=a)
    differing = int(xp.count_nonzero(distance != 0))
    beyond = differing
    if rule.atol or rule.rtol or rule.ulp:
        beyond = int(xp.count_nonzero(_beyond(distance, larger, rule, near)))
    sums = sums._replace(distance=float(distance.sum()))
    max_rel = float(xp.divide(distance, larger, out=b).max())
    if math.isnan(max_rel):  # two zeros: rare enough to be met only then
        max_rel = float(xp.divide(distance, xp.clip(larger, TINY, None, out=larger), out=b).max())
    max_rel = min(max_rel, FURTHEST)
    return Partial(len(a), differing, beyond, 0, at, worst, max_rel, sums)


def _dot(xp: Namespace, a: Array, b: Array) -> float:
    """The inner product in rows so short that BLAS starts no threads for one.

    Its threads would fight with ours, and the sum would depend on how many processors there are.
    """
    cut = len(a) - len(a) % ROW
    tail = float(xp.dot(a[cut:], b[cut:])) if cut < len(a) else 0.0
    if not cut:
        return tail
    rows = xp.matmul(a[:cut].reshape(-1, 1, ROW), b[:cut].reshape(-1, ROW, 1))
    return float(rows.sum()) + tail


def complexes(xp: Namespace, a: Array, b: Array, rule: Tolerance, rest: Array = 0.0) -> Partial:
    """Two complex128 arrays; distances are those in the plane."""
    same = _same(xp, xp.real(a), xp.real(b)) & _same(xp, xp.imag(a), xp.imag(b))
    return careful(xp, a, b, rule, None, same, rest=rest)


def of_two_types(xp: Namespace, a: Array, b: Array, rule: Tolerance, rest: Array) -> Partial:
    """Two float64 arrays of which ``rest``, the difference of :func:`lost`, was rounded away."""
    return careful(xp, a, b, rule, None, _same(xp, a, b), rest=rest)


def lost(xp: Namespace, words: Array, rounded: Array, *, flipped: bool) -> Array:
    """What float64 has lost of integers of 64 bits, exactly; see :func:`integers` for ``flipped``.

    The halves of an integer are exact, and so is the distance of the upper from what is near it.
    """
    upper = xp.asarray(words >> 32, dtype=xp.float64) + (HALF / 2 if flipped else 0.0)
    return (upper * HALF - rounded) + xp.asarray(words & (int(HALF) - 1), dtype=xp.float64)


def counted_pairs(
    xp: Namespace, counts: Array, values: Array, rule: Tolerance, near: Near
) -> tuple[Partial, Array]:
    """Elements of one byte, from how often each pair ``256 * first + second`` of codes occurs.

    ``values`` is what the 256 codes mean, in float64. Returns also the mask of the worst pairs,
    since where they stand is not among the counts.
    """
    a, b = values[:, None] + xp.zeros_like(values), values + xp.zeros_like(values)[:, None]
    a, b = a.reshape(-1), b.reshape(-1)
    same = _same(xp, a, b)
    found = careful(xp, a, b, rule, near, same, counts)
    finite = xp.isfinite(a) & xp.isfinite(b)
    worst = finite & (xp.abs(a - b) == found.max_abs)
    return found, ~finite & ~same if found.nonfinite else worst


def careful(
    xp: Namespace,
    a: Array,
    b: Array,
    rule: Tolerance,
    near: Near,
    same: Array,
    weights: Any = None,
    rest: Array = 0.0,
) -> Partial:
    """Any numbers, also such as are not finite; ``weights`` say how often each pair occurs.

    ``rest`` is what has to be added to ``a - b``.
    """
    once = xp.ones_like(same, dtype=xp.int64) if weights is None else weights

    def tally(mask: Array) -> int:
        return int(xp.where(mask, once, 0).sum())

    finite = xp.isfinite(a) & xp.isfinite(b)
    strange = ~finite & ~same & (once > 0)
    a, b = xp.where(finite, a, 0), xp.where(finite, b, 0)
    times = xp.asarray(xp.where(finite, once, 0), dtype=xp.float64)
    sizes, others = xp.abs(a), xp.abs(b)
    distance = xp.where(once > 0, xp.abs(a - b + rest), 0)
    larger = xp.maximum(sizes, others)
    odd = tally(strange)
    worst = float(distance.max())
    first = xp.argmax(xp.asarray(strange, dtype=xp.int64)) if odd else distance.argmax()
    relative = xp.where(distance > 0, distance, 0) / xp.clip(larger, TINY, None)
    return Partial(
        elements=int(once.sum()),
        differing=tally(distance > 0) + odd,
        beyond=tally(_beyond(distance, larger, rule, near)) + odd,
        nonfinite=odd,
        at=int(first) if odd or worst else -1,
        max_abs=worst,
        max_rel=min(float(relative.max()), FURTHEST),
        sums=Sums(
            finite=tally(finite),
            distance=_weighted(distance, times),
            distance_sq=_weighted(distance * distance, times),
            a_sq=_weighted(sizes * sizes, times),
            b_sq=_weighted(others * others, times),
            dot=_weighted(xp.real(a * xp.conj(b)), times),
        ),
    )


def _weighted(values: Array, times: Array) -> float:
    """The sum; an infinity that occurs no time is none of it."""
    occurring = times > 0
    return float((values[occurring] * times[occurring]).sum())


def _same(xp: Namespace, a: Array, b: Array) -> Array:
    return (a == b) | (xp.isnan(a) & xp.isnan(b))


def _beyond(distance: Array, larger: Array, rule: Tolerance, near: Near) -> Array:
    """The mask of what no tolerance covers."""
    mask = distance > (larger * rule.rtol + rule.atol if rule.rtol else rule.atol)
    return mask & ~near() if rule.ulp and near is not None else mask


def within_ulp(xp: Namespace, a: Array, b: Array, limit: int, bits: int) -> Array:
    """Which pairs are at most ``limit`` numbers of their type apart, from their bits as int64.

    The bits of a floating-point number, without the sign, count the numbers from zero.
    """
    mask = (1 << (bits - 1)) - 1
    steps_a, steps_b = a & mask, b & mask
    same_sign = (a < 0) == (b < 0)
    beside = xp.abs(steps_a - steps_b) <= limit
    near_a, near_b = (xp.clip(steps, 0, limit + 1) for steps in (steps_a, steps_b))
    return (same_sign & beside) | (~same_sign & (near_a + near_b <= limit))


# ----------------------------------------------------------------------------------------- integers


def integers(xp: Namespace, a: Array, b: Array, *, flipped: bool) -> Partial:
    """Two int64 arrays; with ``flipped`` they are uint64 whose top bit was flipped."""
    distance = xp.maximum(a, b) - xp.minimum(a, b)  # wraps: it is a uint64
    at = int((distance ^ TOP).argmax())
    worst = int(distance[at]) % WORD
    differing = int(xp.count_nonzero(distance))
    x, y = (
        _unsigned(xp, words ^ TOP) if flipped else xp.asarray(words, dtype=xp.float64)
        for words in (a, b)
    )
    steps = _unsigned(xp, distance)
    relative = steps / xp.clip(xp.maximum(xp.abs(x), xp.abs(y)), 1.0, None)
    return Partial(
        elements=len(a),
        differing=differing,
        beyond=differing,
        at=at if worst else -1,
        max_abs=worst,
        max_rel=min(float(relative.max()), FURTHEST),
        sums=Sums(
            len(a),
            float(steps.sum()),
            _dot(xp, steps, steps),
            _dot(xp, x, x),
            _dot(xp, y, y),
            _dot(xp, x, y),
        ),
    )


def _unsigned(xp: Namespace, words: Array) -> Array:
    """int64 that mean uint64, as float64."""
    numbers = xp.asarray(words, dtype=xp.float64)
    return xp.where(words < 0, numbers + float(WORD), numbers)

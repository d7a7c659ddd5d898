"""Arithmetic of a comparison: one set of kernels for numpy and torch.

A kernel takes the array namespace (the module ``numpy`` or ``torch``) and two flat arrays, and
returns a :class:`Partial`: numbers about one run of elements, which :func:`merged` adds up. It
uses only functions that both modules have under one name, so that a GPU runs the same lines.

* Floating-point numbers are compared as float64, in which differences of all shorter types are
  exact or rounded once. Sums run over the elements that are finite on both sides.
* Integers are compared as int64, bit for bit, also beyond 2^53. uint64 comes with its top bit
  flipped, which keeps the order.
* Types of one byte have only 65,536 pairs. These are counted, and the numbers follow from the
  counts.

NaN equals NaN in the same place, and an infinity equals itself. Against anything else they differ,
they are counted (``nonfinite``), and no tolerance covers them. -0.0 equals 0.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ckptool.comparison.tolerances import Tolerance
from ckptool.records import NamedTuple

Array = Any
Namespace = Any  # the module numpy or torch
Near = Callable[[], Array] | None  # returns the mask of the elements within ``rule.ulp``

TINY = 5e-324  # makes 0/0 a 0 and changes no other quotient
TOP = -(1 << 63)
WORD = 1 << 64
HALF = float(1 << 32)
ROW = 1 << 13  # elements of an inner product; OpenBLAS starts threads above 10,000
FURTHEST = 2.0  # |a - b| / max(|a|, |b|) is never more


class Sums(NamedTuple):
    """Sums over the elements of a run that are finite on both sides."""

    finite: int = 0  # their number
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
    nonfinite: int = 0  # differing, and non-finite on a side
    at: int = -1  # position of the worst: the first non-finite one, else the largest difference
    max_abs: float = 0.0  # an int for integers
    max_rel: float = 0.0  # |a - b| / max(|a|, |b|)
    sums: Sums = Sums()

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key of how bad the worst is; non-finite ones are equal, so that the first stays."""
        return (self.nonfinite > 0, self.max_abs if self.at >= 0 and not self.nonfinite else -1)


def merged(first: Partial, second: Partial, offset: int) -> Partial:
    """Merge two runs into one, in which the second begins at ``offset``."""
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
    """Measure two float64 arrays; they and ``room``, an array as long, are overwritten."""
    distance = xp.subtract(a, b, out=room)
    sum_sq = _dot(xp, distance, distance)
    if not math.isfinite(float(sum_sq)):
        return careful(xp, a, b, rule, near, _same(xp, a, b))
    if not sum_sq and not distance.any():
        return _of_equal(len(a), float(_dot(xp, a, a)))
    others = _of_finite(xp, a, b, distance, rule, near)
    return _partial(len(a), [float(number) for number in (sum_sq, *others)])


def equal_unseen(xp: Namespace, a: Array) -> list[Array]:
    """Measure an array against itself as :func:`floats` would; see :func:`floats_unseen`."""
    return [_dot(xp, a, a)]


def floats_unseen(
    xp: Namespace, a: Array, b: Array, rule: Tolerance, near: Near, room: Array
) -> list[Array]:
    """Measure as :func:`floats` does, but return 0-d arrays for :func:`floats_seen`.

    Reading a number from a device would wait for all work that was enqueued before.
    """
    distance = xp.subtract(a, b, out=room)
    sum_sq = _dot(xp, distance, distance)
    return [sum_sq, *_of_finite(xp, a, b, distance, rule, near)]


def floats_seen(elements: int, found: Sequence[float]) -> Partial | None:
    """Build a Partial of unseen numbers; None if the sum is non-finite: see :func:`floats`."""
    if not math.isfinite(found[0]):
        return None
    return _of_equal(elements, *found) if len(found) == 1 else _partial(elements, found)


def _of_equal(elements: int, sum_sq: float) -> Partial:
    """Return the numbers of a run that is the same on both sides."""
    return Partial(elements, sums=Sums(elements, a_sq=sum_sq, b_sq=sum_sq, dot=sum_sq))


def _of_finite(
    xp: Namespace, a: Array, b: Array, distance: Array, rule: Tolerance, near: Near
) -> list[Array]:
    """Compute the numbers that :func:`_partial` takes, but for the first."""
    sums = [_dot(xp, a, a), _dot(xp, b, b), _dot(xp, a, b)]
    at = xp.abs(distance, out=distance).argmax()
    larger = xp.maximum(xp.abs(a, out=a), xp.abs(b, out=b), out=a)
    differing = xp.count_nonzero(distance != 0)
    beyond = differing
    if rule.atol or rule.rtol or rule.ulp:
        beyond = xp.count_nonzero(_beyond(distance, larger, rule, near))
    max_abs = xp.take(distance, at) if _is_on_device(xp) else distance[at]
    max_rel = _largest_quotient(xp, distance, larger, b)
    return [*sums, distance.sum(), differing, beyond, at, max_abs, max_rel]


def _partial(elements: int, found: Sequence[float]) -> Partial:
    sum_sq, a_sq, b_sq, dot, total, differing, beyond, at, max_abs, max_rel = found
    return Partial(
        elements=elements,
        differing=int(differing),
        beyond=int(beyond),
        at=int(at) if max_abs else -1,
        max_abs=max_abs,
        max_rel=min(max_rel, FURTHEST),
        sums=Sums(elements, total, sum_sq, a_sq, b_sq, dot),
    )


def floats_of_rows(
    xp: Namespace, a: Array, b: Array, rule: Tolerance, near: Near
) -> Iterator[Partial | None]:
    """Measure each row of two float64 matrices as :func:`floats` would, in numpy alone.

    The rows are shorter than ``ROW``. None stands for one that is not finite throughout.
    """
    size = a.shape[1]
    distance = a - b
    sums = [_row_dots(xp, *pair) for pair in ((distance, distance), (a, a), (b, b), (a, b))]
    distance = xp.abs(distance, out=distance)
    larger = xp.maximum(xp.abs(a, out=a), xp.abs(b, out=b), out=a)
    differing = xp.count_nonzero(distance, axis=1)
    beyond = differing
    if rule.atol or rule.rtol or rule.ulp:
        beyond = xp.count_nonzero(_beyond(distance, larger, rule, near), axis=1)
    sums.append(distance.sum(axis=1))
    places = distance.argmax(axis=1), distance.max(axis=1)
    max_rel = xp.divide(distance, xp.clip(larger, TINY, None, out=larger), out=b).max(axis=1)
    columns = [column.tolist() for column in (*sums, differing, beyond, *places, max_rel)]
    for found in zip(*columns, strict=True):
        if not math.isfinite(found[0]):
            yield None
        else:
            yield _partial(size, found) if found[5] else _of_equal(size, found[1])


def _row_dots(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the inner product of each pair of rows: to the last bit that of :func:`_dot`."""
    return xp.matmul(a[:, None, :], b[:, :, None]).reshape(-1) + 0.0  # no -0.0, as in a sum


def _is_on_device(xp: Namespace) -> bool:
    return bool(xp.__name__ == "torch")


def _largest_quotient(xp: Namespace, distance: Array, larger: Array, room: Array) -> Array:
    """Return the largest quotient, 0/0 being 0; on the CPU a NaN shows if there is a 0/0."""
    if not _is_on_device(xp):
        quotient = xp.divide(distance, larger, out=room).max()
        if not math.isnan(quotient):
            return quotient
    return xp.divide(distance, xp.clip(larger, TINY, None, out=larger), out=room).max()


def _dot(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the inner product, on the CPU in rows so short that BLAS starts no threads.

    Its threads would compete with ours, and the sum would depend on the number of CPUs.
    """
    cut = len(a) - len(a) % ROW
    if not cut or _is_on_device(xp):
        return xp.dot(a, b)
    rows = xp.matmul(a[:cut].reshape(-1, 1, ROW), b[:cut].reshape(-1, ROW, 1)).sum()
    return rows + xp.dot(a[cut:], b[cut:]) if cut < len(a) else rows


def complexes(xp: Namespace, a: Array, b: Array, rule: Tolerance, rest: Array = 0.0) -> Partial:
    """Measure two complex128 arrays; distances are those in the plane."""
    same = _same(xp, xp.real(a), xp.real(b)) & _same(xp, xp.imag(a), xp.imag(b))
    return careful(xp, a, b, rule, None, same, rest=rest)


def of_two_types(xp: Namespace, a: Array, b: Array, rule: Tolerance, rest: Array) -> Partial:
    """Measure two float64 arrays whose difference lacks ``rest``, rounded off: see :func:`lost`."""
    return careful(xp, a, b, rule, None, _same(xp, a, b), rest=rest)


def lost(xp: Namespace, words: Array, rounded: Array, *, flipped: bool) -> Array:
    """Return exactly the part of 64-bit integers that float64 rounded off.

    The halves of an integer are exact, and so is the distance of the upper half from a number near
    it. See :func:`integers` for ``flipped``.
    """
    upper = xp.asarray(words >> 32, dtype=xp.float64) + (HALF / 2 if flipped else 0.0)
    return (upper * HALF - rounded) + xp.asarray(words & (int(HALF) - 1), dtype=xp.float64)


def counted_pairs(
    xp: Namespace, counts: Array, values: Array, rule: Tolerance, near: Near
) -> Partial:
    """Measure elements of one byte by the counts of the pairs ``256 * first + second`` of codes.

    ``values`` are the values of the 256 codes, in float64; ``near`` returns a mask of all pairs.
    Counts do not tell where the worst is, so ``at`` is 0 if there is one: see :func:`worst_pairs`.
    """
    (met,) = xp.where(counts > 0)
    a, b = values[met >> 8], values[met & 0xFF]
    near_met = None if near is None else lambda: near()[met]
    found = careful(xp, a, b, rule, near_met, _same(xp, a, b), counts[met])
    return found._replace(at=min(found.at, 0))


def worst_pairs(xp: Namespace, found: Partial, values: Array) -> Array:
    """Return the mask of the pairs of codes that are as bad as the worst element."""
    a, b = values[:, None] + xp.zeros_like(values), values + xp.zeros_like(values)[:, None]
    finite = xp.isfinite(a) & xp.isfinite(b)
    if found.nonfinite:
        return (~finite & ~_same(xp, a, b)).reshape(-1)
    return (finite & (xp.abs(a - b) == found.max_abs)).reshape(-1)


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
    """Measure any numbers, also non-finite ones; ``weights`` say how often each pair occurs.

    ``rest`` is added to ``a - b``.
    """
    once = xp.ones_like(same, dtype=xp.int64) if weights is None else weights

    def tally(mask: Array) -> int:
        return int(xp.where(mask, once, 0).sum())

    finite = xp.isfinite(a) & xp.isfinite(b)
    strange = ~finite & ~same
    distance = xp.where(finite, xp.abs(a - b + rest), 0)
    a, b = xp.where(finite, a, 0), xp.where(finite, b, 0)
    times = xp.asarray(once, dtype=xp.float64)
    sizes, others = xp.abs(a), xp.abs(b)
    larger = xp.maximum(sizes, others)
    odd = tally(strange)
    worst = float(distance.max())
    first = xp.argmax(xp.asarray(strange, dtype=xp.int64)) if odd else distance.argmax()
    return Partial(
        elements=int(once.sum()),
        differing=tally(distance > 0) + odd,
        beyond=tally(_beyond(distance, larger, rule, near)) + odd,
        nonfinite=odd,
        at=int(first) if odd or worst else -1,
        max_abs=worst,
        max_rel=min(float((distance / xp.clip(larger, TINY, None)).max()), FURTHEST),
        sums=Sums(
            finite=tally(finite),
            distance=float((distance * times).sum()),
            distance_sq=float((distance * distance * times).sum()),
            a_sq=float((sizes * sizes * times).sum()),
            b_sq=float((others * others * times).sum()),
            dot=float((xp.real(a * xp.conj(b)) * times).sum()),
        ),
    )


def _same(xp: Namespace, a: Array, b: Array) -> Array:
    return (a == b) | (xp.isnan(a) & xp.isnan(b))


def _beyond(distance: Array, larger: Array, rule: Tolerance, near: Near) -> Array:
    """Return the mask of the differences that no tolerance covers."""
    mask = distance > (larger * rule.rtol + rule.atol if rule.rtol else rule.atol)
    return mask & ~near() if rule.ulp and near is not None else mask


def within_ulp(xp: Namespace, a: Array, b: Array, limit: int, bits: int) -> Array:
    """Return the mask of pairs at most ``limit`` numbers of their type apart, from int64 bits.

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
    """Measure two int64 arrays; with ``flipped`` they are uint64 whose top bit was flipped."""
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
            float(_dot(xp, steps, steps)),
            float(_dot(xp, x, x)),
            float(_dot(xp, y, y)),
            float(_dot(xp, x, y)),
        ),
    )


def _unsigned(xp: Namespace, words: Array) -> Array:
    """Convert int64 that mean uint64 to float64."""
    numbers = xp.asarray(words, dtype=xp.float64)
    return xp.where(words < 0, numbers + float(WORD), numbers)

"""Statistics of a tensor's values: non-finite, extreme or constant values, and distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.reports.base import TensorStats
from ckptool.tensors.blocks import blocks, numpy_dtype
from ckptool.tensors.finite import COMPARED, EXTREME_BITS, HUGE, SATURATED
from ckptool.tensors.windows import SMALL, Window, windows
from ckptool.tree.nodes import TensorRef

if TYPE_CHECKING:
    import numpy as np

# ------------------------------------------------------------------------------------------- finite


def _wide(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return values of ``ml_dtypes`` as float32, where numpy's own loops are fast and complete."""
    return values if values.dtype.kind in "fciub" else values.astype("float32")


class Extremes(NamedTuple):
    """Counts of the values that equal the largest finite float16, or are absurdly large."""

    saturated: int
    huge: int
    largest: float  # magnitude of the largest finite value
    is_mask: bool  # one extreme value and one other, as attention adds them at masked positions


def extreme_values(reader: TensorReader, ref: TensorRef) -> Extremes:
    """Count extreme values among the finite ones, exactly; zeros for dtypes that have none."""
    import numpy as np

    if ref.dtype.name not in COMPARED | EXTREME_BITS.keys():
        return Extremes(0, 0, 0.0, False)
    saturated = huge = 0
    largest = 0.0
    extremes: set[float] = set()
    others: set[float] = set()
    for block in blocks(reader, ref):
        values = _wide(block)
        values = values[np.isfinite(values)]
        sizes = np.abs(values).astype(np.float64)
        high = sizes >= HUGE
        clamped = sizes == SATURATED
        saturated, huge = saturated + int(clamped.sum()), huge + int(high.sum())
        largest = max(largest, float(sizes.max(initial=0)))
        _remember(extremes, values[high | clamped])
        _remember(others, values[~(high | clamped)])
    if largest > SATURATED:  # a larger value exists, so nothing was clamped there
        saturated = 0
    is_mask = len(extremes) == 1 and max(extremes) < 0 and len(others) <= 1
    return Extremes(saturated, huge, largest, is_mask)


def _remember(seen: set[float], values: np.ndarray[Any, Any]) -> None:
    """Remember minimum and maximum: two different values show that there are several."""
    if values.size and len(seen) < 2:
        seen.update((float(values.min()), float(values.max())))


class Nonfinite(NamedTuple):
    """Counts of the non-finite values of a tensor, and whether it looks like a mask."""

    nan: int
    infinite: int
    is_mask: bool  # -inf and one other value, as attention adds them at masked positions
    is_unset: bool = False  # one infinity throughout: an observer's extreme before its first value

    @property
    def total(self) -> int:
        """The number of NaN and infinities together."""
        return self.nan + self.infinite


def nonfinite_values(reader: TensorReader, ref: TensorRef) -> Nonfinite:
    """Count non-finite values exactly; zeros for dtypes that have none."""
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
                infinite += int(np.count_nonzero(~finite & ~np.isnan(values)))
            if len(others) < 3 and values.dtype.kind == "f":
                rest = values[values != -np.inf]
                others.update(map(float, (rest.min(), rest.max())) if rest.size else ())
    is_mask = nan == 0 and infinite > 0 and len(others) == 1 and others != {math.inf}
    is_unset = infinite == ref.numel and others in (set(), {math.inf})
    return Nonfinite(nan, infinite, is_mask, is_unset)


def only_value(reader: TensorReader, ref: TensorRef) -> float | None:
    """Return the value that every element has; None if there are several or none is known."""
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
    """Count the integers that are their dtype's smallest or largest value."""
    import numpy as np

    limits = np.iinfo(numpy_dtype(ref.dtype))
    lows = (limits.min,) if limits.min < 0 else ()
    return sum(
        int(np.count_nonzero(np.isin(block, (*lows, limits.max)))) for block in blocks(reader, ref)
    )


# -------------------------------------------------------------------------------------------- stats


BINS = 20  # intervals of a histogram


def tensor_stats(
    reader: TensorReader, ref: TensorRef, *, histogram: bool = False
) -> TensorStats | None:
    """Return minimum, maximum, mean, standard deviation and norm of the finite values, in float64.

    Return None for dtypes without an order (complex) or without arithmetic. A ``histogram`` reads
    the values once more.
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
    low, high = min(lows), max(highs)
    bins = _histogram(reader, ref, low, high) if histogram else None
    return TensorStats(low, high, mean, math.sqrt(spread / count), norm, nonfinite, bins)


def stats_of_each(
    reader: TensorReader, refs: Sequence[TensorRef | None], *, histogram: bool = False
) -> Iterator[TensorStats | None]:
    """Yield the statistics of several tensors, in their order; None for None.

    Small tensors of one dtype and size that lie near each other are taken together: a tensor of
    sixteen values takes fifteen calls of numpy.
    """
    for is_small, group in groupby(refs, _is_small):
        if histogram or not is_small:
            for ref in group:
                yield tensor_stats(reader, ref, histogram=histogram) if ref else None
            continue
        own = [ref for ref in group if ref]
        begin = 0
        for window in windows(ref.chunks[0].span for ref in own):
            end = begin + len(window.places)
            yield from _together(reader, window, own[begin:end])
            begin = end


def _is_small(ref: TensorRef | None) -> bool:
    """Return whether a tensor is one whose values lie ready in a few bytes."""
    return (
        ref is not None
        and ref.dtype.numpy is not None
        and ref.dtype.kind != "complex"
        and ref.is_stored_plainly
        and 0 < ref.chunks[0].span.nbytes <= SMALL
    )


def _together(
    reader: TensorReader, window: Window, refs: Sequence[TensorRef]
) -> Sequence[TensorStats | None]:
    import numpy as np

    data, found = reader.read(window.span), dict[int, TensorStats]()
    alike: dict[tuple[DType, int], list[int]] = {}
    for at, ref in enumerate(refs):
        alike.setdefault((ref.dtype, ref.numel), []).append(at)
    for (dtype, numel), own in alike.items():
        joined = b"".join([data[slice(*window.places[at])] for at in own])
        stored = np.frombuffer(joined, numpy_dtype(dtype)).reshape(-1, numel)
        values = stored.astype(np.float64)
        with np.errstate(all="ignore"):
            means = values.mean(axis=1)
            spreads = ((values - means[:, None]) ** 2).sum(axis=1)
        are_finite = np.isfinite(values).all(axis=1)
        columns = (are_finite, values.min(axis=1), values.max(axis=1), means, spreads)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for at, (is_finite, low, high, mean, spread) in zip(own, rows, strict=True):
            if is_finite:
                norm = math.sqrt(spread + numel * mean * mean)
                found[at] = TensorStats(low, high, mean, math.sqrt(spread / numel), norm, 0)
    return [found.get(at) or tensor_stats(reader, ref) for at, ref in enumerate(refs)]


def _histogram(
    reader: TensorReader, ref: TensorRef, low: float, high: float
) -> tuple[int, ...] | None:
    """Return how many finite values are in each of equal intervals from ``low`` to ``high``.

    Halves are counted, since ``high - low`` may be larger than floats are. Return None where so few
    floats lie between ``low`` and ``high`` that an interval would hold none.
    """
    import numpy as np

    counts = np.zeros(BINS, np.int64)
    ends = low / 2, high / 2
    edges = np.linspace(*ends, BINS + 1)
    if not (edges[:-1] < edges[1:]).all():
        return None
    for block in blocks(reader, ref):
        values = block.astype(np.float64)
        counts += np.histogram(values[np.isfinite(values)] / 2, BINS, ends)[0]
    return tuple(map(int, counts))


def _combined(moments: list[tuple[int, float, float]]) -> tuple[int, float, float]:
    """Combine (count, mean, sum of squared deviations) of blocks (Chan, Golub, LeVeque 1979)."""
    count, mean, spread = moments[0]
    for n, m, s in moments[1:]:
        delta = m - mean
        total = count + n
        mean += delta * n / total
        spread += s + delta * delta * count * n / total
        count = total
    return count, mean, spread

"""Pairing of an unnamed list of EMA weights with the model's names, by order, shape and values.

``torch_ema``, diffusers and NeMo store a list without names in the order of ``parameters()``. A
state dict has the same order, with buffers in between and sometimes with frozen parameters that the
list lacks. So the pairing is monotone: a subsequence of the model's floating-point tensors whose
shapes are those of the list.

If only one such subsequence exists, shapes decide. If several exist, the one whose values are
nearest is taken, and only if it is near: a list that fits badly everywhere is paired with nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ckptool.contents.inventory import Leaf
from ckptool.ema.evidence import UNRELATED, distance
from ckptool.formats.base import TensorReader
from ckptool.names import STATISTICS
from ckptool.records import NamedTuple
from ckptool.tree.nodes import TensorRef

DOUBTFUL = 0.5  # relative distance from which on a better partner is looked for
MAX_TWINS = 64  # tensors of one shape that are compared
TIE = 1e-9  # distances that differ by less are equal
MAX_COMPARED = 50_000  # pairs whose values are compared
MAX_CELLS = 2_000_000  # of the table of partial pairings


class Ordering(NamedTuple):
    """A pairing by order."""

    pairs: Mapping[str, str]  # model's name -> position in the list; empty: values do not decide
    ways: int  # how many pairings the shapes allow; above 1, values decided


def order_names(
    model: Mapping[str, Leaf],
    average: Sequence[tuple[str, Leaf]],
    reader: TensorReader,
    groups: Sequence[int] = (),
) -> Ordering | None:
    """Return the pairing of a list with the model's tensors in their order; None if none fits.

    The parameters (floating point, no batch statistics) are tried first, then every tensor.
    ``groups`` are the sizes of the parameter groups if an optimizer wrote the list: each group then
    has an order of its own. A pairing that shapes allow is accepted only if the values fit.
    """
    everything = list(model.items())
    parameters = [(name, ref) for name, ref in everything if _is_parameter(name, ref)]
    of_parameters = [_monotone(parameters, average, reader)]
    if len(groups) > 1 and sum(groups) == len(average):
        of_parameters.append(_by_groups(parameters, average, reader, groups))
    entries, ways = dict(average), 0
    for attempts in (of_parameters, [_monotone(everything, average, reader)]):
        fitting = [f for f in attempts if f is not None]
        believed = [
            f for f in fitting if f.pairs and not _misplaced(model, entries, f.pairs, reader)
        ]
        if believed:
            return min(believed, key=lambda f: sum(
                _cost(reader, model[name], entries[place]) for name, place in f.pairs.items()
            ))  # fmt: skip
        ways = ways or sum(f.ways for f in fitting)
    return Ordering({}, ways) if ways else None


def order_by_shape(
    model: Mapping[str, Leaf], average: Sequence[tuple[str, Leaf]]
) -> dict[str, str]:
    """Return model's name -> position if shapes allow a single order of the parameters; else {}.

    This is for lists whose values do not resemble the model's, such as an optimizer's moments.
    """
    names = [(name, ref) for name, ref in model.items() if _is_parameter(name, ref)]
    slack = len(names) - len(average)
    if slack < 0 or len(average) * (slack + 1) > MAX_CELLS:
        return {}
    if _count_ways(names, average, slack) != 1:
        return {}
    return {names[j][0]: average[i][0] for i, j in enumerate(_first_way(names, average))}


def _by_groups(
    model: Sequence[tuple[str, Leaf]],
    average: Sequence[tuple[str, Leaf]],
    reader: TensorReader,
    groups: Sequence[int],
) -> Ordering | None:
    """Pair one group after the other, each with the names that are left; None if one fails."""
    pairs: dict[str, str] = {}
    ways, start = 1, 0
    for size in groups:
        left = [(name, ref) for name, ref in model if name not in pairs]
        found = _monotone(left, average[start : start + size], reader)
        if found is None or not found.pairs:
            return None
        pairs, ways, start = {**pairs, **found.pairs}, ways * found.ways, start + size
    return Ordering(pairs, ways)


def _misplaced(
    model: Mapping[str, Leaf],
    average: Mapping[str, Leaf],
    pairs: Mapping[str, str],
    reader: TensorReader,
) -> bool:
    """Return whether a pair that fits badly has a much better partner: the order is wrong."""
    for name, position in pairs.items():
        ref = average[position]
        found = _cost(reader, model[name], ref)
        if found < DOUBTFUL or ref.shape == ():
            continue
        twins = [r for n, r in model.items() if n != name and r.shape == ref.shape][:MAX_TWINS]
        if any(_cost(reader, twin, ref) < found / 2 for twin in twins):
            return True
    return False


def _is_parameter(name: str, ref: Leaf) -> bool:
    return ref.dtype.is_floating and not name.endswith(STATISTICS)


def _monotone(
    model: Sequence[tuple[str, Leaf]], average: Sequence[tuple[str, Leaf]], reader: TensorReader
) -> Ordering | None:
    slack = len(model) - len(average)
    if slack < 0 or not average or len(average) * (slack + 1) > MAX_CELLS:
        return None
    ways = _count_ways(model, average, slack)
    if ways == 0:
        return None
    if ways == 1:
        chosen = _first_way(model, average)
    elif len(average) * (slack + 1) > MAX_COMPARED:
        chosen = []
    else:
        chosen = _nearest_way(model, average, slack, reader)
        if _is_close(model, average, chosen, reader):
            chosen = []
    return Ordering({model[j][0]: average[i][0] for i, j in enumerate(chosen)}, ways)


def _count_ways(
    model: Sequence[tuple[str, Leaf]], average: Sequence[tuple[str, Leaf]], slack: int
) -> int:
    """Return in how many ways the list is a subsequence of the model by shape.

    ``ways[k]`` counts the pairings of the list so far that skip at most ``k`` of the model's
    tensors.
    """
    if not slack:  # as mostly
        return int([ref.shape for _, ref in model] == [ref.shape for _, ref in average])
    ways = [1] * (slack + 1)
    for i, (_, ref) in enumerate(average):
        total, row = 0, []
        for skipped in range(slack + 1):
            if model[i + skipped][1].shape == ref.shape:
                total += ways[skipped]
            row.append(total)
        ways = row
    return ways[-1]


def _first_way(model: Sequence[tuple[str, Leaf]], average: Sequence[tuple[str, Leaf]]) -> list[int]:
    """Return the first way: each tensor is paired with the first one left of its shape."""
    chosen, j = [], 0
    for _, ref in average:
        while model[j][1].shape != ref.shape:
            j += 1
        chosen.append(j)
        j += 1
    return chosen


def _nearest_way(
    model: Sequence[tuple[str, Leaf]],
    average: Sequence[tuple[str, Leaf]],
    slack: int,
    reader: TensorReader,
) -> list[int]:
    """Return the way with the least sum of distances; [] if two are equally near or none is."""
    best, ties = [0.0] * (slack + 1), [1] + [0] * slack
    steps: list[list[int]] = []
    for i, (_, ref) in enumerate(average):
        reached: list[float] = []
        counts: list[int] = []
        came: list[int] = []
        low, at, many = math.inf, 0, 0
        for k in range(slack + 1):
            if ties[k] and best[k] < low - TIE:
                low, at, many = best[k], k, ties[k]
            elif ties[k] and best[k] <= low + TIE:
                many += ties[k]
            reached.append(low + _cost(reader, model[i + k][1], ref))
            counts.append(many if math.isfinite(reached[-1]) else 0)
            came.append(at)
        best, ties, steps = reached, counts, [*steps, came]
    least = min(best)
    if sum(n for cost, n in zip(best, ties, strict=True) if cost <= least + TIE) != 1:
        return []
    if least / len(average) >= UNRELATED:
        return []
    return _retraced(steps, best.index(least))


def _is_close(
    model: Sequence[tuple[str, Leaf]],
    average: Sequence[tuple[str, Leaf]],
    chosen: Sequence[int],
    reader: TensorReader,
) -> bool:
    """Return whether a skipped tensor is near too, as norms are that are still almost ones."""
    for i, place in enumerate(chosen):
        begin = chosen[i - 1] + 1 if i else 0
        end = chosen[i + 1] if i + 1 < len(chosen) else len(model)
        ref = average[i][1]
        passed = [model[j][1] for j in range(begin, end) if j != place]
        if any(_cost(reader, other, ref) < DOUBTFUL for other in passed):
            return True
    return False


def _retraced(steps: list[list[int]], k: int) -> list[int]:
    chosen = []
    for i in reversed(range(len(steps))):
        chosen.append(i + k)
        k = steps[i][k]
    return chosen[::-1]


def _cost(reader: TensorReader, ours: Leaf, theirs: Leaf) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    if not (isinstance(ours, TensorRef) and isinstance(theirs, TensorRef)):
        return math.inf
    # Relative to the larger of the two: relative to a small bias every distance would be huge.
    found = min(distance(reader, ours, theirs), distance(reader, theirs, ours))
    return found if math.isfinite(found) else 1.0  # zeros and integers say nothing

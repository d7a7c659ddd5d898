"""Pairs an unnamed list of averages with the model's names, by order, shape and maybe values.

``torch_ema``, diffusers and NeMo store a bare list in the order of ``parameters()``. A state dict
has the same order, with buffers in between and sometimes with frozen parameters that the list
lacks. So the pairing is a monotone one: a subsequence of the model's floating-point tensors whose
shapes are those of the list.

When only one such subsequence exists, shapes decide. When several do, the one whose values are
nearest is taken, and only if it is near: a list that fits badly everywhere is paired with nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptool.evidence import UNRELATED, distance
from ckptool.formats.base import TensorReader
from ckptool.inventory import Leaf
from ckptool.tree import TensorRef

TIE = 1e-9  # distances this near are equal
MAX_CELLS = 2_000_000  # of the table of partial pairings
STATISTICS = re.compile(r"(running_mean|running_var|num_batches_tracked)$")


@dataclass(frozen=True, slots=True)
class Ordering:
    """A pairing by order."""

    pairs: Mapping[str, str]  # model's name -> position in the list; empty: values do not decide
    ways: int  # how many pairings the shapes allow; above 1, values decided


def order_names(
    model: Mapping[str, Leaf], average: Sequence[tuple[str, Leaf]], reader: TensorReader
) -> Ordering | None:
    """The pairing of a list with the model's tensors in their order, or None where none fits.

    Tried first on parameters (floating point, no batch statistics), then on every tensor.
    """
    everything = list(model.items())
    parameters = [(name, ref) for name, ref in everything if _is_parameter(name, ref)]
    for names in (parameters, everything):
        found = _monotone(names, average, reader)
        if found is not None:
            return found
    return None


def _is_parameter(name: str, ref: Leaf) -> bool:
    return ref.dtype.is_floating and not STATISTICS.search(name)


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
    else:
        chosen = _nearest_way(model, average, slack, reader)
    return Ordering({model[j][0]: average[i][0] for i, j in enumerate(chosen)}, ways)


def _count_ways(
    model: Sequence[tuple[str, Leaf]], average: Sequence[tuple[str, Leaf]], slack: int
) -> int:
    """In how many ways the list is a subsequence of the model by shape.

    ``ways[k]`` counts the pairings of the list so far that skip at most ``k`` of the model's
    tensors.
    """
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
    """The only way there is: each tensor goes to the first place left that fits."""
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
    """The way with the least sum of distances; empty when two are equally near, or none is near."""
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
    found = distance(reader, ours, theirs)
    return found if math.isfinite(found) else 1.0  # zeros and integers say nothing

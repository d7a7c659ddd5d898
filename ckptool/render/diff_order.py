"""The order in which ckptool diff lists tensors: by role and change, or as was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptool.reports.base import GroupDistance
from ckptool.reports.diff import DiffReport, TensorDifference


def in_order(rows: Sequence[TensorDifference], report: DiffReport) -> list[TensorDifference]:
    """Sort the rows as was asked for; without a wish by role, and by change in each."""
    if report.order is None:
        return worst_first(rows, report.sections)
    return sorted(rows, key=ORDERS[report.order])


def worst_first(
    rows: Sequence[TensorDifference], sections: Sequence[GroupDistance]
) -> list[TensorDifference]:
    """Sort by role, weights first, and by relative change.

    Of one role, rows without numbers come first; those within the tolerance come last of all.
    """
    roles = {group.address: group.role for group in sections}
    ranks = {row.section: rank_of(roles.get(row.section, "")) for row in rows}
    worst = sorted(rows, key=_badness, reverse=True)
    return sorted(worst, key=lambda row: (row.kind == "within", ranks[row.section]))


def rank_of(role: str) -> int:
    """Return the place of a role in a list: weights, EMA, others, then the optimizer's state."""
    return {"model": 0, "": 0, "ema": 1, "optimizer": 3, "rng": 4}.get(role, 2)


def _badness(row: TensorDifference) -> tuple[bool, bool, bool, float]:
    distance = row.distance
    change = distance.relative_l2 if distance else 0.0
    strange = bool(distance and distance.nonfinite)
    return (row.kind != "within", distance is None, strange, math.inf if change is None else change)


# --sort -> the key of a row.
ORDERS: Mapping[str, Callable[[TensorDifference], Any]] = {
    "change": lambda row: [-part for part in _badness(row)],
    "name": lambda row: row.address,
    "size": lambda row: -max(math.prod(shape) for shape in row.shape if shape is not None),
}

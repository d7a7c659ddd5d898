"""The distance of the EMA weights from the model's by layer, for ``inspect --stats``."""

from __future__ import annotations

from pathlib import Path

from ckptool.commands.diff import diff
from ckptool.ema.layouts import Layouts
from ckptool.errors import CkptError
from ckptool.process.progress import Progress
from ckptool.records import NamedTuple
from ckptool.reports.base import GroupDistance, SameReport


class EmaDistance(NamedTuple):
    """The distances by layer, and how many tensors are the same."""

    layers: tuple[GroupDistance, ...]
    same: SameReport | None  # None: their dtypes differ


def ema_layers(path: Path, layouts: Layouts, progress: Progress) -> EmaDistance | None:
    """Return the distances; None if there are no two sets of weights to compare."""
    try:
        report = diff(f"{path}#@model", f"{path}#@ema", layouts=layouts, progress=progress)
    except CkptError:
        return None
    counts = report.summary.tensors
    is_alike = not counts.get("dtype")
    same = SameReport(counts["compared"], counts["equal"], ()) if is_alike else None
    return EmaDistance(report.layers, same) if report.layers else None

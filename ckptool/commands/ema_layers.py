"""The distance of the EMA weights from the model's by layer, for ``inspect --stats``."""

from __future__ import annotations

from pathlib import Path

from ckptool.commands.diff import diff
from ckptool.ema.layouts import Layouts
from ckptool.errors import CkptError
from ckptool.process.progress import Progress
from ckptool.reports.base import GroupDistance


def ema_layers(
    path: Path, layouts: Layouts, progress: Progress
) -> tuple[GroupDistance, ...] | None:
    """Return the distances by layer; None if there are no two sets of weights to compare."""
    try:
        report = diff(f"{path}#@model", f"{path}#@ema", layouts=layouts, progress=progress)
    except CkptError:
        return None
    return report.layers or None

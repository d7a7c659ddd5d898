"""Which checkpoint of a run to take: the newest that passes, or the best by a metric that passes.

Newest is by what the files say, steps first and epochs next; the clock decides between equals,
since copying a run changes times. A damaged file says nothing, and is passed over: that is what
this is for, a job that was killed while it saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptool.checks.parts import number
from ckptool.commands.inspect import inspect_directory
from ckptool.commands.verify import Request, verify_file
from ckptool.errors import UsageError
from ckptool.layouts import Layouts
from ckptool.reports import RunEntry
from ckptool.training import better_direction
from ckptool.verify_reports import ChoiceReport, VerifyReport

Entries = list[RunEntry]


def latest_valid(folders: Sequence[Path], request: Request) -> ChoiceReport:
    """The newest checkpoint that passes.

    Raises:
        CkptError: a folder cannot be listed, or a file not looked at.
    """
    ordered = sorted(_entries(folders, request.layouts), key=_age, reverse=True)
    return _first_passing(ordered, request, "the newest that passes")


def best_by(metric: str, folders: Sequence[Path], request: Request) -> ChoiceReport:
    """The checkpoint that is best by a metric, of those that pass.

    ``metric`` is an address as ``ckptool inspect`` shows it (``val_stats/loss``), or its last part.

    Raises:
        UsageError: no checkpoint has it, it stands at several places, or its name does not say
            which way is better.
    """
    rated = [
        (value, entry)
        for entry in _entries(folders, request.layouts)
        if (value := _metric(entry, metric)) is not None
    ]
    known = sorted({name for entry in _entries(folders, request.layouts) for name in entry.metrics})
    if not rated:
        hint = f"there are: {', '.join(known[:8])}" if known else "ckptool inspect shows what is"
        raise UsageError(f"no checkpoint has the metric {metric!r}", hint=hint)
    direction = better_direction(metric)
    if not direction:
        raise UsageError(f"whether more or less of {metric!r} is better is not known")
    rated.sort(key=lambda pair: pair[0] * direction, reverse=True)
    return _first_passing([entry for _, entry in rated], request, f"the best {metric} that passes")


def _entries(folders: Iterable[Path], layouts: Layouts) -> Entries:
    return [e for f in folders for e in inspect_directory(f, layouts=layouts).checkpoints]


def _age(entry: RunEntry) -> tuple[float, float, float]:
    return entry.global_step or 0, entry.epoch or 0, Path(entry.path).stat().st_mtime


def _metric(entry: RunEntry, metric: str) -> float | None:
    """The value at the address, or at the one place, but for the training set's, that ends so.

    Raises:
        UsageError: there are several.
    """
    names = [name for name in entry.metrics if name.rpartition("/")[2] == metric]
    held_out = [name for name in names if not name.startswith("train")]
    found = [metric] if metric in entry.metrics else held_out or names
    if len(found) > 1:
        places = ", ".join(found)
        raise UsageError(f"{metric!r} stands at {len(found)} places", hint=f"name one: {places}")
    stated = number(entry.metrics[found[0]]) if found else None
    return None if stated is None or math.isnan(stated) else float(stated)


def _first_passing(ordered: Entries, request: Request, why: str) -> ChoiceReport:
    reports: list[VerifyReport] = []
    for entry in ordered:
        reports.append(verify_file(Path(entry.path), request))
        if reports[-1].ok:
            return ChoiceReport(entry.path, why, tuple(reports))
    return ChoiceReport(None, "none passes", tuple(reports))

"""Choice of a checkpoint of a run: the newest or the best by a metric, if it passes.

The age of a checkpoint follows from its step, then its epoch. The modification time decides only
between equals, since copying a run changes it. What a job leaves that is killed while it saves is
passed over with the reason: a damaged file, a directory without the files that are written last.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from ckptool.checks.parts import number
from ckptool.commands.operands import checkpoint_files, is_run
from ckptool.commands.runs import progress_entry
from ckptool.commands.verify import Request, verify_all
from ckptool.contents.metrics import is_of_training
from ckptool.contents.monitors import Monitors, numbers_called
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.reports.run import RunEntry
from ckptool.reports.verify import COUNTING, ChoiceReport, PassedOver, VerifyReport
from ckptool.tensors.sample import scalar_value

Entries = list[RunEntry]


def latest_valid(folders: Sequence[Path], request: Request) -> ChoiceReport:
    """Return the newest checkpoint that passes, with the verdicts on it and on newer ones.

    Raises:
        CkptError: a directory cannot be listed, or a file cannot be read.
    """
    ordered = sorted(_entries(folders), key=_age, reverse=True)
    return _first_passing(ordered, ordered, folders, request, "the newest that passes")


def best_by(metric: str, folders: Sequence[Path], request: Request) -> ChoiceReport:
    """Return the best checkpoint by a metric among those that pass.

    ``metric`` is the key path of any number in the files (``val_stats/loss``), or the end of one.
    An added ``:min`` or ``:max`` states the direction that is better.

    Raises:
        UsageError: no checkpoint has it, several key paths end so, or neither the files nor its
            name state the direction that is better.
    """
    name, sign = _parsed(metric)
    entries = _entries(folders)
    rated = [row for entry in entries if (row := _rated(entry, name)) is not None]
    if not rated:
        raise UsageError(f"no checkpoint has the metric {name!r}", hint=_known(entries, name))
    direction = sign or _direction(name, rated)
    rated.sort(key=lambda row: row.value * direction, reverse=True)
    ordered = [row.entry for row in rated]
    return _first_passing(ordered, entries, folders, request, f"the best {name} that passes")


SIGNS = {"min": -1, "max": 1}
SHOWN = 8  # metrics in a hint


def _parsed(metric: str) -> tuple[str, int]:
    """Split ``val_loss:min`` into name and sign; 0 where no direction is typed."""
    name, _, direction = metric.rpartition(":")
    return (name, SIGNS[direction]) if name and direction in SIGNS else (metric, 0)


def _known(entries: Entries, name: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - 3 ms, for a refusal only

    known = sorted({metric for entry in entries for metric in entry.metrics})
    near = get_close_matches(name, known, SHOWN, 0.6)
    shown = list(dict.fromkeys([*near, *known]))[:SHOWN]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"there are: {', '.join(shown)}{more}" if known else "ckptool inspect shows what is"


class _Rated(NamedTuple):
    """A checkpoint that has the metric."""

    value: float
    entry: RunEntry
    better: str | None  # lower or higher, as its file or the metric's name states


def _direction(name: str, rated: Sequence[_Rated]) -> int:
    """Return -1 where lower is better, 1 where higher is.

    Raises:
        UsageError: nothing states it, or files contradict each other.
    """
    told = {row.better for row in rated} - {None}
    if len(told) == 1:
        return -1 if told == {"lower"} else 1
    why = "the files contradict each other" if told else "neither the files nor its name say it"
    raise UsageError(
        f"it is not known whether a lower or a higher {name!r} is better: {why}",
        hint=f"say it: --best {quote(name)}:min or --best {quote(name)}:max",
    )


def _entries(folders: Iterable[Path]) -> Entries:
    """Return the checkpoints of runs, in the order of their steps.

    A directory that is one checkpoint is its own entry.
    """
    found: Entries = []
    for folder in folders:
        is_one = folder.is_dir() and not is_run(folder)
        for path in [folder] if is_one else checkpoint_files(folder):
            found.append(progress_entry(path))
            gc.collect()  # the program runs without: trees of a hundred files would stay
    return sorted(found, key=lambda e: (e.global_step or 0, e.epoch or 0, e.path))


def _age(entry: RunEntry) -> tuple[float, float, float]:
    return entry.global_step or 0, entry.epoch or 0, Path(entry.path).stat().st_mtime


def _rated(entry: RunEntry, metric: str) -> _Rated | None:
    """Return the value at the key path, or at the only one that ends so.

    Values of the training set count only where there are no others. Results are searched first,
    then every other number of the file.

    Raises:
        UsageError: several key paths end so.
    """
    values: Mapping[str, Any] = entry.metrics
    better = {name: told["is"] for name, told in entry.better.items()}
    found = _called(values, metric)
    if not found and entry.error is None:
        values, better = _any_numbers(Path(entry.path), metric)
        gc.collect()
        found = _called(values, metric) or list(values)
    if len(found) > 1:
        places = ", ".join(found)
        message = f"{metric!r} has {len(found)} values, at different key paths"
        raise UsageError(message, hint=f"name one: {places}")
    stated = number(values[found[0]]) if found else None
    if stated is None or math.isnan(stated):
        return None
    return _Rated(float(stated), entry, better.get(found[0]))


def _called(values: Mapping[str, Any], metric: str) -> list[str]:
    names = [name for name in values if name == metric or name.endswith(f"/{metric}")]
    held_out = [name for name in names if not is_of_training(name)]
    return [metric] if metric in values else held_out or names


def _any_numbers(path: Path, metric: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the numbers at such key paths, and the better direction of each where it is known."""
    with open_checkpoint(path) as checkpoint:
        tree, reader = checkpoint.tree, checkpoint.reader
        values = {at: scalar_value(reader, v) for at, v in numbers_called(tree, metric).items()}
        told = Monitors(tree).directions(values) if values else {}
    return values, {at: direction.word for at, direction in told.items()}


def _first_passing(
    ordered: Entries, entries: Entries, folders: Sequence[Path], request: Request, why: str
) -> ChoiceReport:
    """Return the first of ``ordered`` that passes; ``entries`` has the unreadable ones, too."""
    reports: list[VerifyReport] = []
    for entry in ordered:
        reports += [looked.report for looked in verify_all([Path(entry.path)], request)]
        gc.collect()
        if reports[-1].ok:
            break
    chosen = reports[-1].path if reports and reports[-1].ok else None
    passed_over = {entry.path: entry.error for entry in entries if entry.error is not None}
    passed_over |= {report.path: _reason(report) for report in reports if not report.ok}
    passed_over |= {str(path): UNFINISHED for folder in folders for path in _unfinished(folder)}
    return ChoiceReport(
        chosen,
        why if chosen is not None else "none passes",
        tuple(reports),
        tuple(PassedOver(path, reason) for path, reason in passed_over.items()),
    )


UNFINISHED = "it lacks files that make it a checkpoint: its save was not finished"
NUMBER = re.compile(r"\d+")


def _reason(report: VerifyReport) -> str:
    counts = COUNTING[report.strict]
    found = next(each for each in report.findings if each.severity in counts)
    return f"{found.rule} {found.address}{': ' if found.address else ''}{found.message}"


def _unfinished(folder: Path) -> Iterator[Path]:
    """Yield the directories of a run that are called like its checkpoints and are none."""
    if not is_run(folder):
        return
    whole = {path for path in checkpoint_files(folder) if path.is_dir()}
    called = {NUMBER.sub("", path.name) for path in whole}
    for path in sorted(folder.iterdir()):
        if path not in whole and path.is_dir() and NUMBER.sub("", path.name) in called:
            yield path

"""Choice of a checkpoint of a run: the newest or the best by a metric, if it passes.

The age of a checkpoint follows from its step, then its epoch. The modification time decides only
between equals, since copying a run changes it. What a job leaves that is killed while it saves is
passed over with the reason: a damaged file, a directory without the files that are written last. So
is what ckptool made of other checkpoints of the run.
"""

from __future__ import annotations

import gc
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ckptool.commands.operands import checkpoint_files, is_run
from ckptool.commands.rating import rank
from ckptool.commands.runs import OwnCheckpoints, own_checkpoints
from ckptool.commands.verify import Request, verify_all
from ckptool.errors import UnreadableError
from ckptool.regex import regex
from ckptool.reports.run import RunEntry
from ckptool.reports.verify import COUNTING, ChoiceReport, PassedOver, VerifyReport
from ckptool.sources.places import as_path

Entries = list[RunEntry]


def latest_valid(folders: Sequence[Path], request: Request) -> ChoiceReport:
    """Return the newest checkpoint that passes, with the verdicts on it and on newer ones.

    Raises:
        CkptError: a directory cannot be listed, or a file cannot be read.
    """
    run = _read(folders)
    ordered = sorted(run.entries, key=_age, reverse=True)
    return _first_passing(ordered, run, folders, request, "the newest that passes")


def best_by(metric: str, folders: Sequence[Path], request: Request) -> ChoiceReport:
    """Return the best checkpoint by a metric among those that pass.

    Raises:
        UsageError: see :func:`~ckptool.commands.rating.rank`.
    """
    run = _read(folders)
    name, ordered = rank(metric, run.entries)
    return _first_passing(ordered, run, folders, request, f"the best {name} that passes")


def _read(folders: Iterable[Path]) -> OwnCheckpoints:
    """Return the checkpoints of runs in the order of their steps.

    A directory that is one checkpoint is its own entry.
    """
    entries: Entries = []
    derived: dict[str, str] = {}
    for folder in folders:
        if folder.is_file():
            hint = f"ckptool verify {shlex.quote(str(folder))} checks this file alone"
            raise UnreadableError("a file, not a directory to choose from", path=folder, hint=hint)
        is_one = folder.is_dir() and not is_run(folder)
        found = own_checkpoints([folder] if is_one else checkpoint_files(folder))
        entries += found.entries
        derived |= found.derived
    by_step = sorted(entries, key=lambda e: (e.global_step or 0, e.epoch or 0, e.path))
    return OwnCheckpoints(by_step, derived)


def _age(entry: RunEntry) -> tuple[float, float, float]:
    return entry.global_step or 0, entry.epoch or 0, as_path(entry.path).stat().st_mtime


def _first_passing(
    ordered: Entries, run: OwnCheckpoints, folders: Sequence[Path], request: Request, why: str
) -> ChoiceReport:
    """Return the first of ``ordered`` that passes; ``run`` has the unreadable ones, too."""
    reports: list[VerifyReport] = []
    for entry in ordered:
        reports += [looked.report for looked in verify_all([as_path(entry.path)], request)]
        gc.collect(0)
        if reports[-1].ok:
            break
    chosen = reports[-1].path if reports and reports[-1].ok else None
    passed_over = {entry.path: entry.error for entry in run.entries if entry.error is not None}
    passed_over |= {report.path: _reason(report) for report in reports if not report.ok}
    passed_over |= {str(path): UNFINISHED for folder in folders for path in _unfinished(folder)}
    passed_over |= run.derived
    return ChoiceReport(
        path=chosen,
        why=why if chosen is not None else "none passes",
        reports=tuple(reports),
        passed_over=tuple(PassedOver(path, reason) for path, reason in passed_over.items()),
    )


UNFINISHED = "it lacks files that make it a checkpoint: its save was not finished"
NUMBER = regex(r"\d+")


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

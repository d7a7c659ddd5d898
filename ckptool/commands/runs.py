"""Table of a run's checkpoints, with the best by each metric."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptool.commands.derivatives import Origin, derivatives, origin_of
from ckptool.commands.inspect import inspect_file, training_facts
from ckptool.commands.operands import checkpoint_files, size_of_unread
from ckptool.contents.metrics import is_best, is_of_training
from ckptool.contents.training import read_training_state
from ckptool.ema.layouts import Layouts
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.records import NamedTuple
from ckptool.reports.base import MainSlot
from ckptool.reports.inspect import InspectReport
from ckptool.reports.run import BestReport, RunEntry, RunReport
from ckptool.sources.places import as_path
from ckptool.sources.urls import WEB, RemotePath


def inspect_directory(path: Path, *, layouts: Layouts = ()) -> RunReport:
    """Return a table of the checkpoints directly in a directory, in the order of their steps.

    Raises:
        UnreadableError: it cannot be listed, or there are none.
    """
    return run_report(str(path), (_run_entry(p, layouts) for p in checkpoint_files(path)))


def run_report(path: str, entries: Iterable[RunEntry]) -> RunReport:
    """Return a table of checkpoints in the order of their steps, with the best by each metric."""
    ordered = sorted(entries, key=_place)
    own = own_entries(ordered) if path else OwnCheckpoints(ordered, {})  # else: named one by one
    best = best_by_metric(own.entries)
    return RunReport(
        path=path,
        checkpoints=tuple(ordered),
        best={name: found.path for name, found in best.items()},
        best_by=best,
        left_out=own.derived,
        unrated=tuple(name for name in _compared(own.entries) if name not in best),
    )


def _place(entry: RunEntry) -> tuple[bool, bool, float, float, str]:
    """Return the place in the order of a run: weights without a step follow, then errors."""
    is_of_no_step = entry.global_step is None and entry.epoch is None
    is_unread = entry.error is not None
    return is_unread, is_of_no_step, entry.global_step or 0, entry.epoch or 0, entry.path


def _run_entry(path: Path, layouts: Layouts) -> RunEntry:
    try:
        return run_entry(inspect_file(path, layouts=layouts))
    except CkptError as error:
        return unreadable_entry(path, error)


def unreadable_entry(path: Path, error: CkptError) -> RunEntry:
    """Return the line of a table for a file that cannot be read."""
    size = size_of_unread(path, error)
    is_of_part = error.path is not None and error.path != path
    message = f"{error.path.name}: {error.message}" if error.path and is_of_part else error.message
    return RunEntry(str(path), size, None, None, None, {}, None, error=message)


def progress_entry(path: Path) -> RunEntry:
    """Return the line of a table without the EMA weights, whose search takes most of the time."""
    try:
        with open_checkpoint(path) as checkpoint:
            state = read_training_state(checkpoint.tree, checkpoint.reader)
            size, name = checkpoint.size_bytes, checkpoint.format_name
            made = origin_of(checkpoint)
    except CkptError as error:
        return unreadable_entry(path, error)
    by, of = made or (None, None)
    facts = _progress(training_facts(state))
    return RunEntry(str(path), size, name, ema=None, **facts, made_by=by, made_of=of)


class OwnCheckpoints(NamedTuple):
    """The checkpoints of a run, and the files in its directory that are none."""

    entries: list[RunEntry]
    derived: Mapping[str, str]  # path of a file that ckptool made of others -> how


def own_checkpoints(paths: Iterable[Path]) -> OwnCheckpoints:
    """Return the lines of a table without EMA weights, those of a run's own checkpoints apart."""
    entries = []
    for path in paths:
        entries.append(progress_entry(path))
        gc.collect(0)  # what is new: the program runs without, and a hundred trees would stay
    return own_entries(entries)


def own_entries(entries: Sequence[RunEntry]) -> OwnCheckpoints:
    """Return the entries without those of files that ckptool made of others of them."""
    derived = derivatives((entry.path, _origin(entry)) for entry in entries)
    return OwnCheckpoints([entry for entry in entries if entry.path not in derived], derived)


def _origin(entry: RunEntry) -> Origin | None:
    return (entry.made_by, entry.made_of or "") if entry.made_by is not None else None


def _progress(training: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "epoch": training.get("epoch"),
        "global_step": training.get("global_step"),
        "metrics": {**training.get("metrics", {}), **training.get("best", {})},
        "better": training.get("better", {}),
    }


ISO = "%Y-%m-%dT%H:%M:%SZ"
YEARS = range(1900, 9000)  # others are no times of writing, and some overflow in a time zone


def run_entry(report: InspectReport) -> RunEntry:
    """Return the line of a table for a report."""
    ema = report.ema
    chosen = next((each for each in ema.candidates if each.address == ema.selected), None)
    is_raw = ema.main_slot is MainSlot.RAW  # otherwise the distance says nothing of the run
    rates = dict.fromkeys(rate for each in report.optimizers for rate in each.lr)
    return RunEntry(
        path=report.path if report.address is None else f"{report.path}#{report.address}",
        size_bytes=report.size_bytes,
        format=report.format,
        ema=ema.selected if ema.selected is not None else ema.status,
        **_progress(report.training),
        main_slot=ema.main_slot,
        snapshots=report.snapshots,
        made_by=report.provenance["command"] if report.provenance else None,
        made_of=report.provenance["source"] if report.provenance else None,
        modified=_modified(report.path),
        parameters=report.model.parameters if report.model else None,
        lr=tuple(rates),
        ema_distance=chosen.distance if chosen and is_raw else None,
    )


def _modified(path: str) -> str | None:
    """Return the time of the last change of a file or a directory, if its listing states it."""
    place = as_path(path)
    if isinstance(place, RemotePath) and place.scheme in WEB:  # lists nothing
        return None
    try:
        changed = place.stat().st_mtime
        written = datetime.fromtimestamp(changed, UTC)
    except (OSError, OverflowError, ValueError):  # a file system may have years beyond 9999
        return None
    is_known = changed or not isinstance(place, RemotePath)
    return written.strftime(ISO) if is_known and written.year in YEARS else None


def best_by_metric(entries: Sequence[RunEntry]) -> dict[str, BestReport]:
    """Return the best checkpoint for each metric that more than one checkpoint has.

    Running bests (``best_val_loss``) are left out, since they are equal in every later checkpoint.
    The numbers of the training set are left out too.
    """
    best = {}
    for name, rated in _compared(entries).items():
        told = [entry.better[name] for _, entry in rated if name in entry.better]
        if {each["is"] for each in told} in ({"lower"}, {"higher"}):  # else files contradict
            choose = min if told[0]["is"] == "lower" else max
            value, entry = choose(rated, key=lambda pair: pair[0])
            best[name] = BestReport(entry.path, value, told[0]["is"], told[0]["because"])
    return best


def _compared(entries: Sequence[RunEntry]) -> dict[str, list[tuple[float, RunEntry]]]:
    """Return the metrics by which checkpoints can be compared, with the values of each."""
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    compared = {}
    for name in names:
        rated = [
            (entry.metrics[name], entry)
            for entry in entries
            if isinstance(entry.metrics.get(name), (int, float))
            and entry.metrics[name] == entry.metrics[name]
        ]
        is_running = is_best(name.rpartition("/")[2]) or is_of_training(name)
        if len(rated) > 1 and not is_running:
            compared[name] = rated
    return compared


def in_a_table(reports: Sequence[Any]) -> Iterator[Any]:
    """Yield the tables of directories, then one table of all single files."""
    files = [one for one in reports if isinstance(one, (InspectReport, RunEntry))]
    yield from (one for one in reports if not isinstance(one, (InspectReport, RunEntry)))
    if len(files) > 1:
        entries = (run_entry(one) if isinstance(one, InspectReport) else one for one in files)
        yield run_report("", entries)
    else:
        yield from (one for one in files if isinstance(one, InspectReport))

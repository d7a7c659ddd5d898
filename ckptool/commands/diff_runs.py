"""Comparison of two runs, checkpoint by checkpoint: since when they differ, and in what.

Checkpoints belong together that state the same step, or else the same epoch, or else that have the
same name. Each pair is compared as ``diff`` compares two checkpoints, in the order of the run, and
only a row of each comparison is kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckptool.commands.diff import DiffOptions, diff
from ckptool.commands.operands import checkpoint_files
from ckptool.commands.runs import own_checkpoints
from ckptool.contents.selection import parse_operand
from ckptool.ema.layouts import Layouts
from ckptool.errors import CkptError, UsageError
from ckptool.process.progress import Progress, no_progress, parts
from ckptool.process.ranks import Ranks
from ckptool.records import NamedTuple
from ckptool.reports.diff import DiffReport, PairReport, PairState, RunDiffReport
from ckptool.reports.run import RunEntry


def diff_runs(
    a: str,
    b: str,
    options: DiffOptions = DiffOptions(),  # noqa: B008 - a tuple
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    ranks: Ranks = Ranks(),  # noqa: B008 - a tuple
) -> RunDiffReport:
    """Compare the checkpoints of two runs; the arguments are those of ``diff``.

    Raises:
        UsageError: no two checkpoints belong together, or the options suit no pair.
        CkptError: a directory cannot be listed, or the device is not there.
    """
    one, other = (own_checkpoints(checkpoint_files(parse_operand(text).path)) for text in (a, b))
    pairs = pair_checkpoints(one.entries, other.entries)
    if not any(pair.a and pair.b for pair in pairs):
        raise UsageError(
            f"no checkpoint of {a} belongs to one of {b}: none has the same step, epoch or name",
            hint="name two checkpoints to compare",
        )
    rows: list[PairReport] = []
    unused: set[str] | None = None  # by every pair
    settings: dict[str, None] = {}  # key paths
    refused: list[UsageError] = []
    for pair in parts(progress, pairs):
        row, made = _compared(pair, options, progress, layouts, ranks)
        rows.append(row)
        if isinstance(made, UsageError):
            refused.append(made)
        elif made is not None:
            settings |= dict.fromkeys(made.summary.settings)
            unused = {*made.unused} if unused is None else unused & {*made.unused}
            gc.collect(0)  # what is new: the program runs without, and all trees would stay
    if refused and unused is None:  # they suit no pair
        raise refused[0]
    first = next((row for row in rows if row.state is PairState.DIFFERENT), None)
    first_state = next((row for row in rows if row.first_state is not None), None)
    return RunDiffReport(
        equal=all(row.state is PairState.EQUAL for row in rows),
        a=a,
        b=b,
        checkpoints=tuple(rows),
        first=first,
        first_tensor=next((row for row in rows if row.first_tensor is not None), None),
        same_until=_last(rows, first, lambda row: row.state is PairState.EQUAL),
        first_state=first_state,
        state_same_until=_last(rows, first_state, _is_same_state),
        left_out={**one.derived, **other.derived},
        unread=sum(row.state is PairState.UNREAD for row in rows),
        tolerances=tuple(row._asdict() for row in dict.fromkeys(options.tolerances.rows)),
        strict=options.strict,
        unused=tuple(sorted(unused or ())),
        settings=tuple(settings),
    )


def _is_same_state(row: PairReport) -> bool:
    """Return whether two checkpoints differ in nothing, or in settings alone."""
    return row.state in {PairState.EQUAL, PairState.DIFFERENT} and row.first_state is None


def _last(
    rows: Sequence[PairReport], end: PairReport | None, holds: Callable[[PairReport], bool]
) -> PairReport | None:
    """Return the last row before ``end`` for which ``holds`` is true."""
    before = rows if end is None else rows[: rows.index(end)]
    return next(filter(holds, reversed(before)), None)


# -------------------------------------------------------------------------------------------- pairs


class CheckpointPair(NamedTuple):
    """Two checkpoints that belong together, or one alone."""

    a: RunEntry | None
    b: RunEntry | None


Key = tuple[str, object]  # global_step, epoch or name, and its value


def pair_checkpoints(a: Sequence[RunEntry], b: Sequence[RunEntry]) -> list[CheckpointPair]:
    """Return the pairs in the order of the run: by step, by epoch, then those without."""
    unread = {_name(entry) for entry in (*a, *b) if entry.error is not None}
    sides: dict[Key, tuple[list[RunEntry], list[RunEntry]]] = {}
    for at, entries in enumerate((a, b)):
        for entry in entries:
            key = ("name", _name(entry)) if _name(entry) in unread else _key(entry)
            sides.setdefault(key, ([], []))[at].append(entry)
    pairs = [pair for ours, theirs in sides.values() for pair in _together(ours, theirs)]
    return sorted(_with_names(pairs), key=_place)


def _name(entry: RunEntry) -> str:
    return Path(entry.path).name


def _key(entry: RunEntry) -> Key:
    if entry.global_step is not None:
        return "global_step", entry.global_step
    return ("epoch", entry.epoch) if entry.epoch is not None else ("name", _name(entry))


def _together(ours: list[RunEntry], theirs: list[RunEntry]) -> Iterator[CheckpointPair]:
    """Yield the pairs of one step: equal names first; a copy belongs to the first of the others."""
    if not (ours and theirs):
        yield from (CheckpointPair(entry, None) for entry in ours)
        yield from (CheckpointPair(None, entry) for entry in theirs)
        return
    by_name = {_name(entry): entry for entry in theirs}
    same = [(entry, by_name[_name(entry)]) for entry in ours if _name(entry) in by_name]
    named = {_name(entry) for entry, _ in same}
    left, right = ([e for e in side if _name(e) not in named] for side in (ours, theirs))
    yield from (CheckpointPair(*pair) for pair in same)
    for at in range(max(len(left), len(right))):
        yield CheckpointPair(
            left[at] if at < len(left) else ours[0], right[at] if at < len(right) else theirs[0]
        )


def _with_names(pairs: Sequence[CheckpointPair]) -> Iterator[CheckpointPair]:
    """Yield the pairs; those left alone belong together by name, if one of them states no step."""
    left = {_name(pair.b): pair.b for pair in pairs if pair.b and not pair.a}
    taken = set()
    for pair in pairs:
        other = left.get(_name(pair.a)) if pair.a and not pair.b else None
        if pair.a and other and None in {pair.a.global_step, other.global_step}:
            taken.add(other.path)
            yield CheckpointPair(pair.a, other)
        elif pair.a or (pair.b and pair.b.path not in taken):
            yield pair


def _place(pair: CheckpointPair) -> tuple[bool, float, float, str]:
    step, epoch = _stated(pair)
    names = [_name(entry) for entry in pair if entry is not None]
    return step is None and epoch is None, step or 0, epoch or 0, names[0]


def _stated(pair: CheckpointPair) -> tuple[float | None, float | None]:
    """Return the step and the epoch of a pair, as the first of the two states them."""
    told = [entry for entry in pair if entry is not None]
    steps, epochs = ([getattr(e, name) for e in told] for name in ("global_step", "epoch"))
    return (
        next((step for step in steps if step is not None), None),
        next((epoch for epoch in epochs if epoch is not None), None),
    )


# --------------------------------------------------------------------------------------------- rows


def _compared(
    pair: CheckpointPair,
    options: DiffOptions,
    progress: Progress,
    layouts: Layouts,
    ranks: Ranks,
) -> tuple[PairReport, DiffReport | UsageError | None]:
    """Return the row of a pair, and the comparison, or why the options do not suit the pair."""
    step, epoch = _stated(pair)
    a, b = (entry.path if entry else None for entry in pair)
    if a is None or b is None:
        state = PairState.REMOVED if b is None else PairState.ADDED
        return PairReport(state, step, epoch, a, b), None
    try:
        made = diff(a, b, options, progress=progress, layouts=layouts, ranks=ranks)
    except CkptError as error:
        said = f"{error.path or f'{a} and {b}'}: {error.message}"
        row = PairReport(PairState.UNREAD, step, epoch, a, b, error=said)
        return row, error if isinstance(error, UsageError) else None
    return _row(made, step, epoch, a, b), made


def _row(made: DiffReport, step: float | None, epoch: float | None, a: str, b: str) -> PairReport:
    summary = made.summary
    counted = [row for row in made.tensors if row.kind != "within"]
    return PairReport(
        PairState.EQUAL if made.equal else PairState.DIFFERENT,
        step,
        epoch,
        a,
        b,
        first=summary.first,
        first_state=summary.first_state,
        first_tensor=counted[0].address if counted else None,
        tensors=len(counted),
        values=sum(row.kind != "within" for row in made.values),
        max_abs=summary.max_abs,
        relative_l2=summary.relative_l2,
        nonfinite=summary.nonfinite,
        measured=summary.measured,
        floating=summary.floating,
        not_compared=summary.not_compared,
    )

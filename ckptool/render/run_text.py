"""The text of ``ckptool inspect`` for the checkpoints of a run: a line for each, then trends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

from ckptool.records import NamedTuple
from ckptool.render import text as words
from ckptool.render.facts import TOP, post_hoc, short
from ckptool.render.page import Grid, Page, line, one_by_one
from ckptool.reports.base import MainSlot
from ckptool.reports.run import RunEntry, RunReport

ERROR_LIMIT = 400  # characters


@one_by_one
def show_run(report: RunReport) -> Page:
    """Yield a line for each checkpoint, the best by each metric, and the trends of the run."""
    where = words.printable(report.path)
    yield (
        line((where, "title"), f"  {_totals(report)}")
        if where
        else line((_totals(report), "title"))
    )
    yield _table(report)
    for entry in report.checkpoints:
        if entry.error:
            name = words.printable(_name(entry.path, report))
            yield line((name, "name"), ": ", (words.printable(entry.error, ERROR_LIMIT), "error"))
    for metric, best in report.best_by.items():
        yield line(
            f"best {short(metric)}: {words.value(best.value)} in ",
            (words.printable(_name(best.path, report)), "good"),
            (f"  ({best.better} is better, by {short(best.because)})", "quiet"),
        )
    yield from trends(report)
    snapshots = [each for entry in report.checkpoints for each in entry.snapshots or ()]
    if snapshots and where:
        found = words.plural(len(snapshots), "EMA snapshot")
        yield line(f"{found} of {post_hoc(snapshots, report.path)}", wraps=False)
    if report.unrated:
        names = ", ".join(map(short, report.unrated))
        ask = f"ckptool verify --best {short(report.unrated[0])}:max, or :min, takes your word"
        unknown = f"no best by {names}: it is not known whether lower or higher is better"
        yield line((unknown, "quiet"))
        yield line(("hint: ", "info"), ask, wraps=False)


def _totals(report: RunReport) -> str:
    """Return ``6 checkpoints, 15.4 MiB, 163 K parameters each``."""
    entries = report.checkpoints
    told = [
        words.plural(len(entries), "checkpoint"),
        words.size(sum(e.size_bytes for e in entries)),
    ]
    sizes = {entry.parameters for entry in entries if entry.parameters}
    if len(sizes) == 1:
        each = " each" if len(entries) > 1 else ""
        told.append(f"{words.count(sizes.pop())} parameters{each}")
    return ", ".join(told)


def _name(path: str, report: RunReport) -> str:
    return Path(path).name if report.path else path


NEXT_LR = "next lr"  # of the step after the save: most save after ``scheduler.step()``


class Column(NamedTuple):
    """A column of the table, and when it leaves: the highest first."""

    head: str
    cell: Callable[[RunEntry], str]
    leaves: int = 0  # 0: it stays
    side: str = "right"


def _table(report: RunReport) -> Grid:
    read = [entry for entry in report.checkpoints if not entry.error]
    metrics = dict.fromkeys(name for entry in read for name in entry.metrics)
    columns = [
        Column("epoch", lambda e: _number(e.epoch)),
        Column("step", lambda e: _number(e.global_step), 1),
        *(
            Column(short(name), partial(_metric, name), 6 + i if i else 3)
            for i, name in enumerate(metrics)
        ),
        Column(NEXT_LR, lambda e: _rates(e.lr), 4),
        Column("EMA distance", lambda e: _percent(e.ema_distance), 6 + len(metrics)),
        Column("size", lambda e: words.size(e.size_bytes), 2),
        Column("changed", lambda e: _time(e.modified), 5),
        Column("EMA", _ema_cell, side="left"),
    ]
    columns = [column for column in columns if any(map(column.cell, read)) or not read]
    leaving = sorted(((c.leaves, i) for i, c in enumerate(columns, 1) if c.leaves), reverse=True)
    grid = Grid("left", *(column.side for column in columns),
                heads=("file", *(column.head for column in columns)),
                drops=[i for _, i in leaving])  # fmt: skip
    for entry in report.checkpoints:
        name = line((words.printable(_name(entry.path, report)), "name"))
        if entry.error:
            grid.add_row(name, *[""] * (len(columns) - 1), line(("not read", "error")))
        else:
            grid.add_row(name, *(column.cell(entry) for column in columns))
    return grid


def _number(number: object) -> str:
    return "" if number is None else words.value(number)


def _metric(name: str, entry: RunEntry) -> str:
    return _number(entry.metrics.get(name))


def _rates(rates: Sequence[float]) -> str:
    """Return the learning rate; of several, the smallest and the largest."""
    ends = dict.fromkeys((min(rates), max(rates))) if rates else ()
    return "–".join(f"{_as_float(rate):.3g}" for rate in ends)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def _time(written: str | None) -> str:
    """Return a time in the time zone of the reader."""
    if written is None:
        return ""
    from datetime import datetime  # noqa: PLC0415 - for runs only

    return datetime.fromisoformat(written).astimezone().strftime("%Y-%m-%d %H:%M")


# ------------------------------------------------------------------------------------------- trends

FEWEST = 3  # checkpoints that make a trend
POINTS = 40  # of a trend, at most


def trends(report: RunReport) -> Page:
    """Yield for each number that changes over the run the first and the last, and a sparkline."""
    own = (entry for entry in report.checkpoints if entry.path not in report.left_out)
    read = [entry for entry in own if not entry.error]
    names = dict.fromkeys(name for entry in read for name in entry.metrics)
    series: list[tuple[str, Callable[[float], str], list[Any]]] = [
        (short(name), words.value, [entry.metrics.get(name) for entry in read]) for name in names
    ]
    series.append((NEXT_LR, "{:.3g}".format, [max(entry.lr, default=None) for entry in read]))
    series.append(("EMA distance", _percent, [entry.ema_distance for entry in read]))
    grid = Grid("left", "right", "right", "left", title="Over the run", heads=("first", "last", ""))
    for name, shown, values in series:
        numbers = [_as_float(each) for each in values if _is_number(each)]
        if len(numbers) >= FEWEST and len(set(numbers)) > 1:
            ends = (shown(numbers[0]), shown(numbers[-1]))
            grid.add_row(line("  ", (name, "name")), *ends, line((sparkline(numbers), "info")))
    if grid.rows:
        yield grid


def _is_number(thing: object) -> bool:
    return isinstance(thing, (int, float)) and not isinstance(thing, bool)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer that is larger than floats are
        return inf


def sparkline(numbers: Sequence[float]) -> str:
    """Return a character for each number, or for the last one of each part of a long series."""
    size = max(len(numbers) / POINTS, 1)
    ends = dict.fromkeys(round(size * (i + 1)) - 1 for i in range(min(len(numbers), POINTS)))
    points = [numbers[min(end, len(numbers) - 1)] for end in ends]
    finite = [point for point in points if isfinite(point)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(words.level(point, low, high) if isfinite(point) else "×" for point in points)


# Command that made a file whose model holds averaged weights -> what they are.
_IS_AVERAGED = {"promote-ema": "is EMA, promoted", "average": "is an average"}


def _ema_cell(entry: RunEntry) -> str:
    """Return where the EMA weights are, or that the model's state dict holds them."""
    if entry.main_slot is MainSlot.AVERAGED:
        return _IS_AVERAGED.get(entry.made_by or "", "is EMA")
    return short(entry.ema or TOP)

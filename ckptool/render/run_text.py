"""The text of ``ckptool inspect`` for the checkpoints of a run: a line for each, and the best."""

from __future__ import annotations

from pathlib import Path

from ckptool.render import text as words
from ckptool.render.facts import TOP, short
from ckptool.render.page import Grid, Line, Page, line, one_by_one
from ckptool.render.snapshots_text import post_hoc
from ckptool.reports.base import MainSlot
from ckptool.reports.run import RunEntry, RunReport

ERROR_LIMIT = 400  # characters


@one_by_one
def show_run(report: RunReport) -> Page:
    """Yield a line for each checkpoint, and the best checkpoint by each metric."""
    found = words.plural(len(report.checkpoints), "checkpoint")
    where = words.printable(report.path)
    yield line((where, "title"), f"  {found}") if where else line((found, "title"))
    metrics = list(dict.fromkeys(name for e in report.checkpoints for name in e.metrics))
    last = 3 + len(metrics)
    heads = ("file", "epoch", "step", *map(short, metrics), "size", "EMA")
    grid = Grid("left", "right", "right", *("right" for _ in metrics), "right", "left",
                heads=heads, drops=[*range(last - 1, 2, -1), last, 2])  # fmt: skip
    unread = []
    for entry in report.checkpoints:
        name = Path(entry.path).name if where else entry.path
        grid.add_row(*_run_cells(name, entry, metrics))
        if entry.error:
            unread.append((words.printable(name), entry.error))
    yield grid
    for name, error in unread:
        yield line((name, "name"), ": ", (words.printable(error, ERROR_LIMIT), "error"))
    for metric, best in report.best_by.items():
        name = Path(best.path).name if where else best.path
        yield line(
            f"best {short(metric)}: {words.value(best.value)} in ",
            (words.printable(name), "good"),
            (f"  ({best.better} is better, by {short(best.because)})", "quiet"),
        )
    snapshots = [each for entry in report.checkpoints for each in entry.snapshots or ()]
    if snapshots and where:
        found = words.plural(len(snapshots), "EMA snapshot")
        yield line(f"{found} of {post_hoc(snapshots, Path(report.path))}", wraps=False)
    if report.unrated:
        names = ", ".join(map(short, report.unrated))
        ask = f"ckptool verify --best {short(report.unrated[0])}:max, or :min, takes your word"
        unknown = f"no best by {names}: it is not known whether lower or higher is better"
        yield line((unknown, "quiet"))
        yield line(("hint: ", "info"), ask, wraps=False)


def _run_cells(file: str, entry: RunEntry, metrics: list[str]) -> list[Line]:
    name = line((words.printable(file), "name"))
    if entry.error:
        return [name, *([line("")] * (len(metrics) + 3)), line(("not read", "error"))]
    numbers = (entry.epoch, entry.global_step, *(entry.metrics.get(m) for m in metrics))
    cells = [line("" if n is None else words.value(n)) for n in numbers]
    return [
        name,
        *cells,
        line(words.size(entry.size_bytes)),
        line(_ema_cell(entry)),
    ]


def _ema_cell(entry: RunEntry) -> str:
    """Return where the EMA weights are, or that the model's state dict holds them."""
    if entry.main_slot is MainSlot.AVERAGED:
        return "is EMA, promoted" if entry.made_by == "promote-ema" else "is EMA"
    return short(entry.ema or TOP)

"""The text of ``ckptool diff`` for two runs: since when they differ, then a row for each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote

from ckptool.records import NamedTuple
from ckptool.render import text as words
from ckptool.render.diff_text import KINDS, OVER, UNUSED, is_over_part
from ckptool.render.diff_values import number, percent
from ckptool.render.facts import TOP
from ckptool.render.page import Grid, Line, Page, Piece, line, one_by_one
from ckptool.reports.diff import PairReport, PairState, RunDiffReport

LONG = 400  # characters of an error

TOLD: dict[PairState, Piece] = {
    PairState.EQUAL: ("same", "good"),
    PairState.DIFFERENT: ("different", "warning"),
    PairState.REMOVED: ("only in the first", "quiet"),
    PairState.ADDED: ("only in the second", "quiet"),
    PairState.UNREAD: ("not compared", "error"),
}
ALONE = frozenset({PairState.REMOVED, PairState.ADDED})
DIFFERING = ALONE | {PairState.DIFFERENT}


@one_by_one
def show_runs(report: RunDiffReport) -> Page:
    """Yield the answer, the table, and what was not compared."""
    yield _answer(report)
    yield _table(report)
    for row in report.checkpoints:
        if row.error:
            yield line(("not compared: ", "error"), words.printable(row.error, LONG))
    for remark in dict.fromkeys(each for row in report.checkpoints for each in row.not_compared):
        yield line(("not compared: ", "warning"), words.printable(remark, LONG))
    for path, why in report.left_out.items():
        yield line(("left out: ", "info"), f"{words.printable(path)}: {words.printable(why)}")
    for option in report.unused:
        yield line(("fits nothing: ", "warning"), words.printable(option, LONG), UNUSED)
    for reason in _reasons(report):
        yield line(("different, since ", "warning"), reason)


def _answer(report: RunDiffReport) -> Line:
    differs = any(row.state in DIFFERING for row in report.checkpoints)
    word: Piece = ("different", "error") if differs else ("not all compared", "error")
    word = ("equal", "good") if report.equal else word
    a, b = ((words.printable(text), "title") for text in (report.a, report.b))
    return line(word, "  ", a, " and ", b, *(f"\n{told}" for told in answer_lines(report)))


def answer_lines(report: RunDiffReport) -> Iterator[str]:
    """Yield since when the runs differ, in words."""
    first, last = report.first_state, report.state_same_until
    until = f"the same until {_point(last)}" if last else "different from the beginning"
    if first is not None and first.first_state is not None:
        found = first.first_state
        at, role = words.printable(found.address or TOP), f" ({found.role})" if found.role else ""
        yield f"{until}; first difference at {_point(first)}: {at}{role} {KINDS[found.kind]}"
        yield from _tensors(report)
    elif last is not None:
        count = sum(map(_is_same, report.checkpoints))
        yield f"{until}, in {words.plural(count, 'checkpoint')} that both have"
    alone = [
        f"{count:,} {TOLD[state][0]}"
        for state in (PairState.REMOVED, PairState.ADDED)
        if (count := sum(row.state is state for row in report.checkpoints))
    ]
    if alone:
        yield f"checkpoints: {', '.join(alone)}"
    if report.settings:
        yield f"settings that differ: {words.some(report.settings)}"


def _is_same(row: PairReport) -> bool:
    """Return whether nothing differs, or settings alone."""
    return row.state in {PairState.EQUAL, PairState.DIFFERENT} and row.first_state is None


def _reasons(report: RunDiffReport) -> Iterator[str]:
    """Yield why runs count as different whose training state is the same, and what to type."""
    last = report.state_same_until
    if report.equal or report.unread or report.first_state is not None or last is None:
        return
    if report.settings:
        yield "settings differ; --ignore config leaves them out"
    alone = [row for row in report.checkpoints if row.state in ALONE]
    if alone:
        names = " ".join(quote(path) for path in (last.a, last.b) if path)
        has = "1 checkpoint has" if len(alone) == 1 else f"{len(alone):,} checkpoints have"
        typed = words.printable(f"ckptool diff {names}", LONG)
        yield f"{has} no partner; {typed} compares the last that both have"


def _tensors(report: RunDiffReport) -> Iterator[str]:
    """Yield since when tensors differ, if the first difference is in settings alone."""
    first = report.first_tensor
    if first is None:
        yield "no tensor differs"
    elif first != report.first_state:
        at = words.printable(first.first_tensor or TOP)
        yield f"first tensor that differs, at {_point(first)}: {at}"


def _point(row: PairReport) -> str:
    """Return where in the run a row is."""
    if row.step is not None:
        return f"step {words.value(row.step)}"
    if row.epoch is not None:
        return f"epoch {words.value(row.epoch)}"
    return words.printable(Path(row.a or row.b or "").name)


def _text_of(cell: Line | str) -> str:
    return cell if isinstance(cell, str) else cell.text


def _names(row: PairReport) -> str:
    """Return the name of the file; both, if they differ."""
    names = dict.fromkeys(Path(path).name for path in (row.a, row.b) if path)
    return " and ".join(words.printable(name) for name in names)


def _counter(value: float | None) -> str:
    return "" if value is None else words.value(value)


def _count(number_of: int) -> str:
    return f"{number_of:,}" if number_of else ""


def _strange(row: PairReport) -> tuple[Piece, ...]:
    return ((f"{row.nonfinite:,} NOT FINITE", "error"),) if row.nonfinite else ()


def _state(row: PairReport) -> Piece:
    is_alike = row.state is PairState.DIFFERENT and _is_same(row)
    return ("other settings", "quiet") if is_alike else TOLD[row.state]


def _first(row: PairReport) -> str:
    first = row.first_state or row.first
    return words.printable(first.address or TOP, 60) if first else ""


class _Column(NamedTuple):
    head: str
    cell: Callable[[PairReport], Line | str]
    leaves: int = 0  # when it leaves a narrow terminal, the highest first; 0: it stays
    side: str = "right"


COLUMNS: Sequence[_Column] = (
    _Column("step", lambda row: _counter(row.step)),
    _Column("epoch", lambda row: _counter(row.epoch), 3),
    _Column("", lambda row: line(_state(row)), side="left"),
    _Column("tensors", lambda row: _count(row.tensors), 2),
    _Column("other values", lambda row: _count(row.values), 5),
    _Column("max abs", lambda row: number(row.max_abs) if row.max_abs else "", 4),
    _Column("rel. L2", lambda row: percent(row.relative_l2)),
    _Column("", lambda row: line(*_strange(row)), side="left"),
    _Column("first", _first, 1, "left"),
)


def _table(report: RunDiffReport) -> Grid:
    rows = report.checkpoints
    columns = [each for each in COLUMNS if any(map(_text_of, map(each.cell, rows)))]
    leaving = sorted(((c.leaves, i) for i, c in enumerate(columns, 1) if c.leaves), reverse=True)
    grid = Grid(
        "left", *(column.side for column in columns),
        heads=("checkpoint", *(column.head for column in columns)),
        drops=[i for _, i in leaving],
    )  # fmt: skip
    for row in rows:
        grid.add_row(line((_names(row), "name")), *(column.cell(row) for column in columns))
    if is_over_part(rows):
        grid.add_note((OVER, "quiet"))
    return grid

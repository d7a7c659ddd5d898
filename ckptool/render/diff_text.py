"""The text of ``ckptool diff``: the answer, then groups with bars, then the worst tensors.

The length of a bar shows the relative change on a scale of decades. The shortest is 1e-8 and less,
the longest a change as large as the whole vector. Repeated layers share a line, with the range of
their numbers and the largest change among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from string import digits
from typing import TypeVar

from ckptool.records import NamedTuple
from ckptool.render import text as words
from ckptool.render.diff_order import in_order
from ckptool.render.diff_values import number, percent, value_text
from ckptool.render.facts import TOP
from ckptool.render.page import Grid, Line, Page, Piece, one_by_one
from ckptool.render.page import line as _text
from ckptool.reports.base import GroupDistance
from ckptool.reports.diff import (
    DiffReport,
    PairReport,
    RoleDistance,
    TensorDifference,
    TextReport,
    ValueDifference,
)

WORST = 20  # tensors and values that are listed
LINES = 12  # for the layers of one kind
BAR = 16  # characters
AXIS = "1e-6 %  0.01 %  100 %"  # above the bars, a decade for two characters
NO_LAYERS = {"optimizer", "rng"}  # roles of sections whose parts are no layers
SMALLEST = -8  # the decade of the shortest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"

UNUSED = "  (globs fit whole key paths: ckptool inspect --tensors lists them)"

Row = TensorDifference | ValueDifference
Difference = TypeVar("Difference", TensorDifference, ValueDifference)

_KIND_STYLE = {"within": "quiet", "renamed": "warning", "layout": "warning"}


@one_by_one
def show_diff(report: DiffReport) -> Page:
    """Yield everything: the answer, sections, layers, the worst tensors, values."""
    yield from show_stat([report])
    if tensors := measured(report):
        yield _tensors(in_order(tensors, report))
    if values := settings(report):
        yield _values(values)


@one_by_one
def show_stat(report: DiffReport) -> Page:
    """Yield the answer, sections and layers."""
    yield _answer(report)
    for remark in report.summary.not_compared:
        yield _text(("not compared: ", "warning"), words.printable(remark, 400))
    for option in report.unused:
        yield _text(("fits nothing: ", "warning"), words.printable(option, 400), UNUSED)
    if report.hint and not report.equal:
        yield _text(("hint: ", "info"), words.printable(report.hint, 600))
    changed = [g for g in report.sections if g.differing or g.values_differing]
    if report.sections and (changed or any(g.relative_l2 for g in report.sections)):
        yield _groups("Sections", [(_name(g), g) for g in report.sections], "sections")
    of_model = layers_of_model(report)
    layers = [folded for folded in fold_layers(of_model) if _drifted(folded.worst)]
    if layers and len(of_model) > 1:
        yield _groups("Layers", [(f.label, f.worst) for f in layers], "layers")


@one_by_one
def show_names(report: DiffReport) -> Page:
    """Yield the key paths that count as different, one on each line."""
    rows: list[Row] = [*report.tensors, *report.values]
    for row in rows:
        if row.kind != "within":
            yield _text(words.printable(row.address or TOP, 10_000), wraps=False)


# ------------------------------------------------------------------------------------------- answer


def _answer(report: DiffReport) -> Line:
    word: Piece = ("equal", "good") if report.equal else ("different", "error")
    return _text(
        word,
        "  ",
        (words.printable(report.a), "title"),
        " and ",
        (words.printable(report.b), "title"),
        *(f"\n{part}" for part in answer_lines(report)),
    )


def answer_lines(report: DiffReport) -> Iterator[str]:
    """Yield the first difference in the training state, and the counts, in words."""
    first, settings = report.summary.first_state, report.summary.settings
    if first is not None:
        tells_more = first.role not in {"", "other", first.section}
        role = f" ({first.role})" if tells_more else ""
        at = words.printable(first.address or TOP)
        yield f"first difference{role}: {at} {KINDS[first.kind]}"
    elif settings:
        yield "only settings differ; --ignore config leaves them out"
    yield f"tensors: {_counts(report.summary.tensors)}"
    if report.summary.values.get("compared"):
        yield f"other values: {_counts(report.summary.values)}"
    for group in report.summary.roles:
        if group.max_abs and group.role != "rng":  # the distance of its bytes means nothing
            change = group.relative_l2
            relative = f"{percent(change)} (relative L2{_over(group)}), " if change else ""
            role = f"{words.printable(group.role)}: " if group.role else ""
            yield f"{role}{relative}max abs {number(group.max_abs)}"
    if report.summary.nonfinite:
        places = words.plural(report.summary.nonfinite, "element")
        yield f"NaN or infinite, and not the same: {places}"
    if settings:
        yield f"settings that differ: {words.some(settings)}"


def _over(group: RoleDistance) -> str:
    """Return the tensors that a distance is over, if others are equal: they are in no norm."""
    if group.measured >= group.floating:
        return ""
    of = words.plural(group.floating, "floating-point tensor")
    return f", over the {group.measured:,} of {of} with other values"


# Said of relative distances where some tensors are equal.
OVER = "Relative L2 is over the floating-point tensors with other values, without the equal ones"


def is_over_part(rows: Iterable[GroupDistance | PairReport]) -> bool:
    """Return whether a distance is over some of the tensors alone."""
    return any(row.relative_l2 and row.measured < row.floating for row in rows)


# Kind of difference -> predicate of a sentence.
KINDS = {
    "removed": "is only in the first",
    "added": "is only in the second",
    "shape": "has another shape",
    "dtype": "has another dtype",
    "type": "is of another type",
    "value": "has another value",
    "renamed": "has another name",
    "layout": "is stored in another way",
    "within": "is within the tolerance",
}


def _counts(counts: Mapping[str, int]) -> str:
    labels = {"compared": "compared", "value": "differ in value", "shape": "in shape",
              "dtype": "in dtype", "type": "in type", "within": "within tolerance",
              "removed": "only in the first", "added": "only in the second",
              "layout": "in storage"}  # fmt: skip
    return ", ".join(f"{n:,} {labels.get(kind, kind)}" for kind, n in counts.items())


# ------------------------------------------------------------------------------------------- groups


def layers_of_model(report: DiffReport) -> list[GroupDistance]:
    """Return the layers, without the parts of an optimizer and of random states."""
    others = tuple(f"{g.address}/" for g in report.sections if g.role in NO_LAYERS)
    return [each for each in report.layers if not f"{each.address}/".startswith(others)]


class Folded(NamedTuple):
    """Neighbouring layers of one kind, in one line."""

    label: str
    worst: GroupDistance


def fold_layers(layers: Sequence[GroupDistance]) -> Iterator[Folded]:
    """Yield up to ``LINES`` lines for layers in a run whose names differ only in a final number."""
    run: list[GroupDistance] = []
    for layer in [*layers, None]:
        if run and (layer is None or _stem(layer) is None or _stem(layer) != _stem(run[0])):
            size = math.ceil(len(run) / LINES)
            for at in range(0, len(run), size):
                yield _joined(run[at : at + size])
            run = []
        if layer is not None:
            run.append(layer)


def _stem(layer: GroupDistance) -> str | None:
    stem = layer.address.rstrip(digits)
    return stem if stem != layer.address else None


def _joined(run: Sequence[GroupDistance]) -> Folded:
    worst = max(
        run, key=lambda layer: (layer.differing > 0, layer.nonfinite, layer.relative_l2 or 0)
    )
    label = _name(run[0])
    if len(run) > 1:
        label += "…" + run[-1].address[len(_stem(run[-1]) or "") :]
    return Folded(label, replace(worst, differing=sum(layer.differing for layer in run),
                                        tensors=sum(layer.tensors for layer in run)))  # fmt: skip


def _name(group: GroupDistance) -> str:
    return words.printable(group.address or TOP, 60)


def _drifted(group: GroupDistance) -> bool:
    return bool(group.differing or group.max_abs)


def _groups(title: str, rows: Sequence[tuple[str, GroupDistance]], kind: str) -> Grid:
    heads = ("role" if kind == "sections" else "", "differ", "rel. L2", AXIS, "")
    grid = Grid("left", "left", "right", "right", "bar", "left", title=title, heads=heads,
                drops=(4, 1), names=kind == "layers")  # fmt: skip
    for label, group in rows:
        differ = f"{group.differing:,} of {group.tensors:,}" if group.tensors else ""
        if group.values_differing:
            differ += f"{' and ' if differ else ''}{words.plural(group.values_differing, 'value')}"
        is_measured = group.role != "rng"  # the distance of random states means nothing
        change = percent(group.relative_l2) if is_measured else ""
        drawn = bar(group.relative_l2) if is_measured else ""
        role = "" if group.role == group.address else group.role
        style = "warning" if group.differing or group.values_differing else "quiet"
        grid.add_row(
            _text("  ", (label, "name")), role, _text((differ, style)), change,
            _text((drawn, "info")), _text(*_strange(group.nonfinite)),
        )  # fmt: skip
    if kind == "sections" and is_over_part(group for _, group in rows if group.role != "rng"):
        grid.add_note((f"  {OVER}", "quiet"))
    return grid


def _strange(nonfinite: int) -> tuple[Piece, ...]:
    return ((f"{nonfinite:,} NOT FINITE", "error"),) if nonfinite else ()


def bar(change: float | None) -> str:
    """Return a relative change as a bar, by its decade."""
    if not change:
        return ""
    share = max(0.0, min(1.0, 1 - math.log10(change) / SMALLEST))
    full, rest = divmod(round(share * BAR * 8), 8)
    return "█" * full + EIGHTHS[rest].strip() if full or rest else EIGHTHS[1]


# ---------------------------------------------------------------------------------- tensors, values


def measured(report: DiffReport) -> list[TensorDifference]:
    """Return the tensors that differ, without counters, which are settings."""
    return [row for row in report.tensors if not row.is_counter]


def settings(report: DiffReport) -> list[ValueDifference]:
    """Return the plain values that differ, and in the same form the counters that differ."""
    counted = [
        ValueDifference(
            row.address, row.kind, row.section, row.a, row.b,
            f"in {words.plural(row.tensors, 'tensor')}" if row.tensors > 1 else "",
        )
        for row in report.counters
    ]  # fmt: skip
    return [*report.values, *counted]


# Of tensors.
HEADS = ("", "max abs", "max rel", "RMS", "rel. L2", "differ", "largest at", "parameter")


class Listed(NamedTuple):
    """A table of the tensors or of the values that differ, as documents show it."""

    what: str  # tensor, setting
    heads: tuple[str, ...]  # of the columns after the key path
    rows: Sequence[tuple[str, ...]]
    total: int  # of which these rows are the first


def listed(report: DiffReport, most: int) -> Iterator[Listed]:
    """Yield the tables of a report that have rows, with at most so many; the worst come first."""
    if tensors := measured(report):
        worst = in_order(tensors, report)[:most]
        heads = _heads(worst)
        cells = [(row.address, row.kind, *tensor_cells(row))[: len(heads) + 1] for row in worst]
        yield Listed("tensor", heads, cells, len(tensors))
    if values := settings(report):
        texts = [(row.address, row.kind, value_text(row)) for row in values[:most]]
        yield Listed("setting", ("", "first → second"), texts, len(values))


def _tensors(rows: Sequence[TensorDifference]) -> Grid:
    """Return the table of tensors that differ, from rows in the order of the list."""
    shown = _worst(rows)
    heads = _heads(shown)
    sides = ("left", "right", "right", "right", "right", "right", "text", "left")[: len(heads)]
    drops = (7, 4, 3, 6, 8)[: len(heads) - 3]
    grid = Grid("left", *sides, title="Tensors", heads=heads, drops=drops, names=True)
    _list(grid, [(row, tensor_cells(row)[: len(heads) - 1]) for row in shown], len(rows))
    return grid


def _heads(rows: Sequence[TensorDifference]) -> tuple[str, ...]:
    """Return the heads of the columns; the last is for states of an optimizer alone."""
    return HEADS if any(row.parameter for row in rows) else HEADS[:-1]


def _values(rows: Sequence[ValueDifference]) -> Grid:
    grid = Grid("left", "left", "text", title="Settings", names=True)
    _list(grid, [(row, [value_text(row)]) for row in _worst(rows)], len(rows))
    return grid


def _worst(rows: Sequence[Difference]) -> Sequence[Difference]:
    """Return the rows to list: the worst on a terminal; all in a pipe, where people search."""
    return rows if words.is_whole() else rows[:WORST]


def _list(grid: Grid, rows: Sequence[tuple[Row, list[str]]], total: int) -> None:
    """Add a row for each difference, with its cells, and the number of those left out."""
    for row, cells in rows:
        style = _KIND_STYLE.get(row.kind, "error")
        name = words.printable(row.address or TOP, 100)
        kind = "" if row.kind == "value" else row.kind
        grid.add_row(_text("  ", (name, "name")), _text((kind, style)), *cells)
    if total > len(rows):
        grid.add_note((f"  and {total - len(rows):,} more; a pipe gets all", "quiet"))


def tensor_cells(row: TensorDifference) -> list[str]:
    """Return the numbers of a row for the columns of the table, or its forms instead."""
    if row.distance is None:
        return ["", "", "", "", "", form_of(row), words.printable(row.parameter or "", 100)]
    d = row.distance
    share = f"{d.differing:,} of {d.elements:,}"
    where = f"[{', '.join(map(str, d.worst_at))}]" + (f" {form_of(row)}" if form_of(row) else "")
    strange = f"  {d.nonfinite:,} NOT FINITE" if d.nonfinite else ""
    change = percent(d.relative_l2) or number(d.relative_l2)
    cells = [number(d.max_abs), f"{d.max_rel:.3g}", f"{d.rms:.3g}", change]
    return [*cells, share, where + strange, words.printable(row.parameter or "", 100)]


def form_of(row: TensorDifference) -> str:
    """Return dtypes and shapes where they differ, the other name, and the remark."""
    said = []
    one, other = (
        f"{words.printable(dtype)} {list(shape or ())}" if dtype is not None else "nothing"
        for dtype, shape in zip(row.dtype, row.shape, strict=True)
    )
    if one != other:
        said.append({"added": other, "removed": one}.get(row.kind, f"{one} → {other}"))
    if row.other is not None:
        said.append(f"→ {words.printable(row.other, 100)}")
    return "; ".join([*said, *([words.printable(row.note, 300)] if row.note else [])])


def counted(report: DiffReport) -> list[Row]:
    """Return the rows that count as different, the worst first."""
    rows: list[Row] = [*in_order(measured(report), report), *settings(report)]
    return [row for row in rows if row.kind != "within"]


def described(row: Row) -> str:
    """Return a difference in one line."""
    if isinstance(row, ValueDifference):
        return f"{KINDS[row.kind]}: {value_text(row)}"
    numbers = row.distance
    far = f": max abs {number(numbers.max_abs)}, {numbers.differing} differ" if numbers else ""
    if numbers and numbers.nonfinite:
        far += f", {numbers.nonfinite} NOT FINITE"
    form = form_of(row)
    return f"{KINDS[row.kind]}{far}{'; ' if form else ''}{form}"


# ----------------------------------------------------------------------------------------- textconv


@one_by_one
def show_lines(report: TextReport) -> Page:
    """Yield each line; nothing is aligned, so that one change affects only one line."""
    for line in report.lines:
        shown = words.printable(line.value, len(line.value))
        yield _text(f"{words.printable(line.address, 1000)}: {shown}", wraps=False)

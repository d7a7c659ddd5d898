"""What ``ckptool diff`` shows as text: the answer, then groups with bars, then the worst tensors.

A bar is as long as the relative change is large, on a scale of decades: 1e-8 and less is the
shortest, the change of the whole vector the longest. Repeated layers stand in one line, which says
the range of their numbers and shows the largest change among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import digits
from typing import Any, NamedTuple

from ckptool.diff_reports import (
    DiffReport,
    GroupDistance,
    TensorDifference,
    TextReport,
    ValueDifference,
)
from ckptool.render import text as words
from ckptool.render.page import Grid, Line, Page, Piece
from ckptool.render.page import line as _text

TEXT = 60  # characters of a text that are shown
WORST = 20  # tensors and values that are listed
LINES = 12  # in which the layers of one kind are shown
BAR = 16  # characters
TOP = "(the top)"  # what has no address, since it is the whole
SMALLEST = -8  # the decade that is drawn as nothing
EIGHTHS = " ▏▎▍▌▋▊▉█"

_KIND_STYLE = {"within": "quiet", "renamed": "warning", "layout": "warning"}


def show_diff(report: DiffReport) -> Page:
    """Everything: the answer, sections, layers, the worst tensors, values."""
    yield from show_stat(report)
    if report.tensors:
        yield _tensors(report.tensors)
    if report.values:
        yield _values(report.values)


def show_stat(report: DiffReport) -> Page:
    """The answer, sections and layers."""
    yield _answer(report)
    for remark in report.summary.not_compared:
        yield _text(("not compared: ", "warning"), words.printable(remark, 400))
    if report.hint and not report.equal:
        yield _text(("hint: ", "info"), words.printable(report.hint, 600))
    changed = [g for g in report.sections if g.differing or g.values_differing]
    if report.sections and (changed or any(g.relative_l2 for g in report.sections)):
        yield _groups("Sections", [(_name(g), g) for g in report.sections], "sections")
    layers = [folded for folded in fold_layers(report.layers) if _drifted(folded.worst)]
    if layers and len(report.layers) > 1:
        yield _groups("Layers", [(f.label, f.worst) for f in layers], "layers")


def show_names(report: DiffReport) -> Page:
    """The addresses that count as different, one a line."""
    rows: list[TensorDifference | ValueDifference] = [*report.tensors, *report.values]
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
    """Where they part, and the counts, in words."""
    first = report.summary.first
    if first is not None:
        section = words.printable(first.section) or "the weights"
        role = f" ({first.role})" if first.role and first.role != first.section else ""
        at = words.printable(first.address or TOP)
        yield f"first in {section}{role}: {at} {KINDS[first.kind]}"
    yield f"tensors: {_counts(report.summary.tensors)}"
    if report.summary.values.get("compared"):
        yield f"other values: {_counts(report.summary.values)}"
    if report.summary.max_abs:
        change = report.summary.relative_l2
        relative = f", {change:.3g} of the norm of what differs" if change else ""
        yield f"largest difference {number(report.summary.max_abs)}{relative}"
    if report.summary.nonfinite:
        places = words.plural(report.summary.nonfinite, "element")
        yield f"NaN or infinite, and not the same: {places}"


# Kinds of difference as a predicate.
KINDS = {
    "removed": "is only in the first",
    "added": "is only in the second",
    "shape": "has another shape",
    "dtype": "has another type",
    "type": "is of another type",
    "value": "has another value",
    "renamed": "has another name",
    "layout": "is stored in another way",
    "within": "is within the tolerance",
}


def _counts(counts: Mapping[str, int]) -> str:
    labels = {"compared": "compared", "value": "differ in value", "shape": "in shape",
              "dtype": "in type", "type": "in type", "within": "within tolerance",
              "removed": "only in the first", "added": "only in the second",
              "layout": "in storage"}  # fmt: skip
    return ", ".join(f"{n:,} {labels.get(kind, kind)}" for kind, n in counts.items())


def number(value: float | None) -> str:
    """A number of a report, short; a dash where there is none."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) and abs(value) < 10**15 else f"{value:.4g}"


# ------------------------------------------------------------------------------------------- groups


class Folded(NamedTuple):
    """Neighbouring layers of one kind, in one line."""

    label: str
    worst: GroupDistance


def fold_layers(layers: Sequence[GroupDistance]) -> Iterator[Folded]:
    """At most ``LINES`` lines for a run of layers whose names differ in their last number only."""
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
    return Folded(label, worst._replace(differing=sum(layer.differing for layer in run),
                                        tensors=sum(layer.tensors for layer in run)))  # fmt: skip


def _name(group: GroupDistance) -> str:
    return words.printable(group.address or TOP, 60)


def _drifted(group: GroupDistance) -> bool:
    return bool(group.differing or group.max_abs)


def _groups(title: str, rows: Sequence[tuple[str, GroupDistance]], kind: str) -> Grid:
    grid = Grid("left", "left", "right", "right", "left")
    heads = ("role" if kind == "sections" else "", "differ", "relative", "")
    grid.add_row(_text((f"\n{title}", "title")), *(_text((f"\n{head}", "quiet")) for head in heads))
    for label, group in rows:
        differ = f"{group.differing:,} of {group.tensors:,}" if group.tensors else ""
        if group.values_differing:
            differ += f"{' and ' if differ else ''}{words.plural(group.values_differing, 'value')}"
        change = f"{group.relative_l2:.2g}" if group.relative_l2 else ""
        style = "warning" if group.differing or group.values_differing else "quiet"
        grid.add_row(
            _text("  ", (label, "name")), group.role, _text((differ, style)), change,
            _text((bar(group.relative_l2), "info"), *_strange(group.nonfinite)),
        )  # fmt: skip
    return grid


def _strange(nonfinite: int) -> tuple[Piece, ...]:
    return ((f" {nonfinite:,} NOT FINITE", "error"),) if nonfinite else ()


def bar(change: float | None) -> str:
    """A relative change as a bar, by its decade."""
    if not change:
        return ""
    share = max(0.0, min(1.0, 1 - math.log10(change) / SMALLEST))
    full, rest = divmod(round(share * BAR * 8), 8)
    return "█" * full + EIGHTHS[rest].strip() if full or rest else EIGHTHS[1]


# ---------------------------------------------------------------------------------- tensors, values


def worst_first(rows: Sequence[TensorDifference]) -> list[TensorDifference]:
    """What has no partner or another form first, then by relative change, within tolerance last."""
    return sorted(rows, key=_badness, reverse=True)


def _badness(row: TensorDifference) -> tuple[bool, bool, bool, float]:
    distance = row.distance
    change = distance.relative_l2 if distance else 0.0
    strange = bool(distance and distance.nonfinite)
    return (row.kind != "within", distance is None, strange, math.inf if change is None else change)


def _tensors(rows: Sequence[TensorDifference]) -> Grid:
    grid = Grid("left", "left", "right", "right", "right", "right", "right", "left")
    heads = ("", "max abs", "max rel", "rms", "relative", "differ", "worst at")
    grid.add_row(_text(("\nTensors", "title")), *(_text((f"\n{head}", "quiet")) for head in heads))
    for row in worst_first(rows)[:WORST]:
        style = _KIND_STYLE.get(row.kind, "error")
        name = words.printable(row.address or TOP, 100)
        grid.add_row(_text("  ", (name, "name")), _text((row.kind, style)), *tensor_cells(row))
    if len(rows) > WORST:
        grid.add_row(_text((f"  and {len(rows) - WORST:,} more", "quiet")))
    return grid


def tensor_cells(row: TensorDifference) -> list[str]:
    """The numbers of a row for the columns of the table, or what there is instead."""
    if row.distance is None:
        return ["", "", "", "", "", form_of(row)]
    d = row.distance
    share = f"{d.differing:,} of {d.elements:,}"
    where = f"[{', '.join(map(str, d.worst_at))}]" + (f" {form_of(row)}" if form_of(row) else "")
    strange = f"  {d.nonfinite:,} NOT FINITE" if d.nonfinite else ""
    cells = [number(d.max_abs), f"{d.max_rel:.3g}", f"{d.rms:.3g}", number(d.relative_l2)]
    return [*cells, share, where + strange]


def form_of(row: TensorDifference) -> str:
    """Types and shapes where they differ, the other name, the remark."""
    said = []
    one, other = (
        f"{words.printable(dtype)} {list(shape or ())}" if dtype is not None else "nothing"
        for dtype, shape in zip(row.dtype, row.shape, strict=True)
    )
    if one != other:
        said.append(f"{one} → {other}")
    if row.other is not None:
        said.append(f"→ {words.printable(row.other, 100)}")
    return "; ".join([*said, *([words.printable(row.note, 300)] if row.note else [])])


def _values(rows: Sequence[ValueDifference]) -> Grid:
    grid = Grid("left", "left", "left")
    grid.add_row(_text(("\nOther values", "title")))
    for row in rows[:WORST]:
        style = _KIND_STYLE.get(row.kind, "error")
        name = words.printable(row.address or TOP, 100)
        grid.add_row(_text("  ", (name, "name")), _text((row.kind, style)), value_text(row))
    if len(rows) > WORST:
        grid.add_row(_text((f"  and {len(rows) - WORST:,} more", "quiet")))
    return grid


def value_text(row: ValueDifference) -> str:
    """``3 → 4``, and the remark."""
    skipped = _common_start(row.a, row.b)
    one = "–" if row.kind == "added" else exactly(row.a, skipped)
    other = "–" if row.kind == "removed" else exactly(row.b, skipped)
    return f"{one} → {other}" + (f"  {words.printable(row.note, 200)}" if row.note else "")


def exactly(value: object, skipped: int = 0) -> str:
    """A value such that two that differ look different; of a text ``skipped`` is left out."""
    if isinstance(value, str):
        shown = value[skipped : skipped + TEXT]
        cut = len(value) > skipped + TEXT
        return f"'{'…' if skipped else ''}{words.printable(shown)}{'…' if cut else ''}'"
    return repr(value) if isinstance(value, float) else words.value(value)


def _common_start(one: object, other: object) -> int:
    """How much of two long texts can be left out so that their difference is seen."""
    if not (isinstance(one, str) and isinstance(other, str)) or max(len(one), len(other)) <= TEXT:
        return 0
    pairs = enumerate(zip(one, other, strict=False))
    same = next((i for i, (x, y) in pairs if x != y), min(len(one), len(other)))
    return max(0, same - TEXT // 3)


# ----------------------------------------------------------------------------------------- textconv


def show_lines(report: TextReport) -> Page:
    """One line each; nothing is aligned, so that a change of one line stays one."""
    for line in report.lines:
        yield _text(f"{words.printable(line.address, 1000)}: {line.value}", wraps=False)


VIEWS: Mapping[str, Callable[[Any], Page]] = {"TextReport": show_lines}

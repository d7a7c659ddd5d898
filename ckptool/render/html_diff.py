"""The report of ``ckptool diff`` as HTML: drift by layer, a histogram, and the worst tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptool.render.diff_text import (
    OVER,
    UNUSED,
    answer_lines,
    fold_layers,
    is_over_part,
    layers_of_model,
    listed,
    measured,
)
from ckptool.render.diff_values import number, percent
from ckptool.render.facts import TOP
from ckptool.render.html_charts import Bar, axis_of, bar_chart, histogram
from ckptool.render.html_document import document, folding, shown, table
from ckptool.reports.base import GroupDistance
from ckptool.reports.diff import DiffReport

ROWS = 200  # tensors and values that are listed
BARS = 80  # layers that are drawn
TITLES = {"tensor": "Tensors, the worst first", "setting": "Settings"}
SCALE = (
    "Relative change: the norm of the difference over that of the larger side. The scale is "
    "logarithmic."
)


def diffs_to_html(reports: Sequence[DiffReport]) -> str:
    """Return one document with all reports."""
    title = "; ".join(f"{_word(report)}: {report.a} and {report.b}" for report in reports)
    return document(title, (line for report in reports for line in _article(report)))


def _word(report: DiffReport) -> str:
    return "equal" if report.equal else "different"


def _article(report: DiffReport) -> Iterator[str]:
    kind = "good" if report.equal else "error"
    yield f'<article><h1><span class="{kind}">{_word(report)}</span> '
    yield f'<span class="name">{shown(report.a)}</span> and '
    yield f'<span class="name">{shown(report.b)}</span></h1>'
    yield from (f"<p>{shown(line)}</p>" for line in answer_lines(report))
    yield from (f"<p>not compared: {shown(said)}</p>" for said in report.summary.not_compared)
    yield from (
        f'<p>fits nothing: <span class="name">{shown(option)}</span>{shown(UNUSED)}</p>'
        for option in report.unused
    )
    yield from _charts(report)
    yield from _sections(report.sections)
    for what, heads, rows, total in listed(report, ROWS):
        cells = ([_name(name), *map(shown, row)] for name, *row in rows)
        numbers = range(2, len(heads)) if what == "tensor" else ()
        body = table(("key path", *heads), cells, total - ROWS, right=numbers)
        yield from folding(f"{TITLES[what]} ({total:,})", body)
    yield f"<footer>{_tolerances(report)}</footer></article>"


def _name(text: str) -> str:
    return f'<span class="name">{shown(text or TOP)}</span>'


def _tolerances(report: DiffReport) -> str:
    rows = [
        f"<code>{shown(row['match'])}</code> {row['atol']:g} absolute, {row['rtol']:g} relative"
        for row in report.tolerances
    ]
    over = f" {OVER}." if is_over_part(report.sections) else ""
    return f"Tolerances: {'; '.join(rows)}. Relative numbers are relative to the larger side.{over}"


def _charts(report: DiffReport) -> Iterator[str]:
    yield from drift_by_layer("Drift by layer", layers_of_model(report))
    changes = [row.distance.relative_l2 for row in measured(report) if row.distance]
    if values := [change for change in changes if change]:
        caption = "Tensors by their relative change: the number in each decade."
        yield from folding("Histogram of relative change", histogram(values, caption))


def drift_by_layer(title: str, of_layers: Sequence[GroupDistance]) -> Iterator[str]:
    """Yield the relative change of each layer as a bar, on an axis of decades."""
    layers = [each for each in fold_layers(of_layers) if _is_measured(each.worst)]
    known = [drift for each in layers if (drift := each.worst.relative_l2)]
    if known or any(each.worst.nonfinite for each in layers):
        axis = axis_of(known or [1.0], in_percent=True)
        bars = [_drift(folded.label, folded.worst) for folded in layers[:BARS]]
        left = f" {len(layers) - BARS:,} more layers are not drawn." if len(layers) > BARS else ""
        over = f" {OVER}." if is_over_part(each.worst for each in layers) else ""
        yield from folding(title, bar_chart(bars, axis, SCALE + left + over))


def _is_measured(group: GroupDistance) -> bool:
    return group.relative_l2 is not None or group.nonfinite > 0


def _drift(label: str, group: GroupDistance) -> Bar:
    """Return the bar of a layer; one of full length for non-finite values."""
    if group.nonfinite:
        return Bar(label, 1.0, f"{group.nonfinite:,} NOT FINITE", "failed")
    change = group.relative_l2 or 0.0
    nothing = "" if group.differing else "0"  # counters differ, which have no distance
    return Bar(label, change, f"{100 * change:.3g} %" if change else nothing)


def _sections(sections: Sequence[GroupDistance]) -> Iterator[str]:
    rows = [
        (_name(s.address), shown(s.role), f"{s.differing:,} of {s.tensors:,}" if s.tensors else "",
         _count(s.values_differing), number(s.max_abs) if s.tensors else "",
         percent(s.relative_l2), _count(s.nonfinite))
        for s in sections
    ]  # fmt: skip
    if rows:
        heads = ("section", "role", "tensors differ", "values differ", "max abs", "rel. L2",
                 "non-finite")  # fmt: skip
        yield from folding("Sections", table(heads, rows, right=range(2, 7)))


def _count(number: int) -> str:
    return f"{number:,}" if number else ""

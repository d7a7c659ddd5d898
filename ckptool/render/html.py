"""The report of ``ckptool diff`` as one self-contained HTML page.

The page has no script, no font and no link to anything outside, so it can be attached to a pull
request or kept for years. Charts are inline SVG and show only numbers of the report. Every text
from a file is made printable and escaped. The page fits every width, on a phone as on paper.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape

from ckptool.render import text as words
from ckptool.render.diff_text import Folded, answer_lines, fold_layers, listed, measured, number
from ckptool.render.facts import TOP
from ckptool.reports.diff import DiffReport, GroupDistance

ROWS = 200  # tensors and values that are listed
TITLES = {"tensor": "Tensors, the worst first", "setting": "Settings"}
DECADES = range(-12, 1)  # of relative change
WIDTH, HEIGHT, BASE = 640, 155, 150  # of a chart, and the y of its axis

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --quiet: #666; --line: #ddd;
  --bar: #2b6cb0; --good: #1a7f37; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --quiet: #9a9a9a;
  --line: #3a3d44; --bar: #6aa9e9; --good: #4cc38a; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.equal { color: var(--good); } .different { color: var(--bad); }
code, td.name { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-size: .9rem; }
th { color: var(--quiet); font-weight: normal; } td.name { min-width: 12rem; }
svg { width: 100%; height: auto; } figure { margin: 0; } ul { padding-left: 1.2rem; }
figcaption { color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }
svg rect { fill: var(--bar); } svg line { stroke: var(--line); }
footer { margin-top: 2rem; color: var(--quiet); font-size: .85rem; }
@media screen and (max-width: 40rem) { thead { display: none; }
  tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  td { border: 0; padding: 0 1rem 0 0; display: inline-block; } td.name { display: block; }
  td:empty { display: none; }
  td[data-label]:not([data-label=""])::before { content: attr(data-label) " ";
    color: var(--quiet); } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } .wide { overflow: visible; }
  h2, svg, tr { break-inside: avoid; } }
"""


def diffs_to_html(reports: Sequence[DiffReport]) -> str:
    """Return the page of each report."""
    return "\n".join(line for report in reports for line in _page(report))


def _page(report: DiffReport) -> Iterator[str]:
    word = "equal" if report.equal else "different"
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{word}: {_shown(report.a)} and {_shown(report.b)}</title>"
    yield f"<style>{STYLE}</style></head><body>"
    yield f'<h1><span class="{word}">{word}</span> <code>{_shown(report.a)}</code> '
    yield f"and <code>{_shown(report.b)}</code></h1>"
    yield "<ul>"
    yield from (f"<li>{escape(line)}</li>" for line in answer_lines(report))
    yield from (f"<li>not compared: {_shown(said)}</li>" for said in report.summary.not_compared)
    yield from (f"<li>fits nothing: <code>{_shown(option)}</code></li>" for option in report.unused)
    yield "</ul>"
    yield from _charts(report)
    yield from _sections(report.sections)
    for what, heads, rows, total in listed(report, ROWS):
        yield f"<h2>{TITLES[what]}</h2>"
        yield from _table(("address", *heads), rows, total - ROWS)
    yield f"<footer>{_tolerances(report)}</footer></body></html>"


def _shown(text: object) -> str:
    return escape(words.printable(text, 400))


def _tolerances(report: DiffReport) -> str:
    rows = [
        f"<code>{_shown(row['match'])}</code> {row['atol']:g} absolute, {row['rtol']:g} relative"
        for row in report.tolerances
    ]
    return f"Tolerances: {'; '.join(rows)}. What is relative is so to the larger of the two sides."


# ------------------------------------------------------------------------------------------- charts


def _charts(report: DiffReport) -> Iterator[str]:
    layers = [folded for folded in fold_layers(report.layers) if folded.worst.elements]
    if any(folded.worst.relative_l2 or folded.worst.nonfinite for folded in layers):
        yield "<h2>Drift by depth</h2>"
        bars = [_drift(folded) for folded in layers]
        ends = f"{layers[0].label} … {layers[-1].label}: relative change, decades up to 1"
        yield _bar_chart(bars, ends, "Relative change of each layer, in the order of the model")
    changes = [row.distance.relative_l2 for row in measured(report) if row.distance]
    counts = Counter(_decade(change) for change in changes if change)
    if counts:
        yield "<h2>Histogram of relative change</h2>"
        most = max(counts.values())
        bars = [(f"1e{decade}: {counts[decade]}", counts[decade] / most) for decade in DECADES]
        ends = f"1e{DECADES[0]} and less … 1 and more: tensors, {most} in the highest"
        yield _bar_chart(bars, ends, "How many tensors changed by how much")


def _drift(folded: Folded) -> tuple[str, float]:
    """Return the label and the height of a layer's bar; full height for non-finite values."""
    strange = folded.worst.nonfinite
    if strange:
        return f"{folded.label}: {strange:,} NOT FINITE", 1.0
    return folded.label, _height(folded.worst.relative_l2)


def _decade(change: float) -> int:
    return max(DECADES[0], min(DECADES[-1], math.floor(math.log10(change))))


def _height(change: float | None) -> float:
    """Return a relative change as a share of the chart's height, by its logarithm."""
    if not change:
        return 0.0
    return max(0.02, min(1.0, 1 - math.log10(change) / DECADES[0]))


def _bar_chart(bars: Sequence[tuple[str, float]], below: str, title: str) -> str:
    step = WIDTH / max(len(bars), 1)
    parts = [
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
    ]
    parts.append(f'<line x1="0" y1="{BASE}" x2="{WIDTH}" y2="{BASE}"/>')
    for i, (label, share) in enumerate(bars):
        height = share * (BASE - 10)
        box = f'x="{i * step + 1:.1f}" y="{BASE - height:.1f}" width="{max(step - 2, 1):.1f}"'
        parts.append(f'<rect {box} height="{height:.1f}"><title>{_shown(label)}</title></rect>')
    parts.append(f"</svg><figcaption>{_shown(below)}</figcaption></figure>")
    return "".join(parts)


# ------------------------------------------------------------------------------------------- tables


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left_out: int = 0) -> Iterator[str]:
    yield '<div class="wide"><table><thead><tr>'
    yield "".join(f"<th>{escape(head)}</th>" for head in heads)
    yield "</tr></thead><tbody>"
    for name, *cells in rows:
        labelled = zip(heads[1:], cells, strict=True)  # for phones, where each row is a paragraph
        rest = "".join(
            f'<td data-label="{escape(head)}">{escape(cell)}</td>' for head, cell in labelled
        )
        yield f'<tr><td class="name">{_shown(name or TOP)}</td>{rest}</tr>'
    yield "</tbody></table></div>"
    if left_out > 0:
        yield f"<p>and {left_out:,} more</p>"


def _sections(sections: Sequence[GroupDistance]) -> Iterator[str]:
    rows = [
        (s.address, s.role, f"{s.differing:,} of {s.tensors:,}",
         f"{s.values_differing:,}", number(s.max_abs), number(s.relative_l2), f"{s.nonfinite:,}")
        for s in sections
    ]  # fmt: skip
    if rows:
        yield "<h2>Sections</h2>"
        heads = ("section", "role", "tensors differ", "values differ", "max abs", "relative",
                 "non-finite")  # fmt: skip
        yield from _table(heads, rows)

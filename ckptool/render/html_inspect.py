"""The report of ``ckptool inspect`` as HTML: a treemap of the sizes, and the text of the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path

from ckptool.render import text as words
from ckptool.render.facts import place
from ckptool.render.html_charts import Bar, Part, Shape, axis_of, bar_chart, shapes, treemap
from ckptool.render.html_diff import drift_by_layer
from ckptool.render.html_document import document, folding, page_as_html, shown
from ckptool.render.inspect_text import show_inspect
from ckptool.render.page import Line, Page
from ckptool.reports.base import TensorStats
from ckptool.reports.inspect import InspectReport, TensorEntry
from ckptool.reports.run import RunReport

MAX_DEPTH = 12  # of rectangles in one another
BARS = 200  # tensors whose spread is drawn

# Role of a section -> class of its rectangle, and what people call it; the others are "other".
TILES = {
    "model": ("tile-model", "model weights"),
    "ema": ("tile-ema", "EMA weights"),
    "raw weights": ("tile-raw", "raw weights"),
    "optimizer": ("tile-optimizer", "optimizer"),
}
OTHER = ("tile-other", "other")
CLOSED = frozenset({"Tensors"})


def inspects_to_html(reports: Sequence[InspectReport | RunReport]) -> str:
    """Return one document with all reports."""
    names = ", ".join(Path(report.path).name or report.path for report in reports)
    return document(names, (line for report in reports for line in _article(report)))


def _article(report: InspectReport | RunReport) -> Iterator[str]:
    yield f"<article><h1>{shown(report.path)}</h1>"
    if isinstance(report, InspectReport):
        parts = _sections(report)
        blocks = list(page_as_html(_below_the_path(show_inspect([report])), CLOSED))
        folds = next((i for i, html in enumerate(blocks) if html[:8] == "<details"), len(blocks))
        yield from blocks[:folds]
        if parts:
            yield from _legend(parts)
            yield from treemap(parts, "Each rectangle is as large as the bytes of its tensors.")
        yield from drift_by_layer("EMA distance by layer", report.ema_layers or ())
        yield from _spreads(report)
        yield from _histograms(report)
        yield from blocks[folds:]
    else:
        yield from page_as_html(_below_the_path(_run_page(report)))
    yield "</article>"


def _below_the_path(page: Page) -> Page:
    """Yield the page without the name of the file, which is the heading of the document."""
    for i, block in enumerate(page):
        yield Line(block.pieces[1:]) if i == 0 and isinstance(block, Line) else block


def _run_page(report: RunReport) -> Page:
    from ckptool.render.run_text import show_run  # noqa: PLC0415 - only for the runs

    return show_run([report])


def _spreads(report: InspectReport) -> Iterator[str]:
    """Yield the standard deviation of each tensor whose values were read, for ``--stats``."""
    measured = [(entry, entry.stats) for entry in report.entries or () if entry.stats]
    bars = [_spread(entry.address, stats) for entry, stats in measured[:BARS]]
    values = [bar.value for bar in bars if bar.value and bar.kind == "bar"]
    if bars:
        left = f" {len(measured) - BARS:,} more are not drawn." if len(measured) > BARS else ""
        caption = f"Standard deviation of the finite values, on a logarithmic scale.{left}"
        yield from folding("Spread of the values", bar_chart(bars, axis_of(values or [1]), caption))


def _histograms(report: InspectReport) -> Iterator[str]:
    """Yield how the values of each tensor are spread, for ``--histogram``."""
    found = [
        Shape(
            entry.address, entry.stats.histogram, f"{entry.stats.min:.3g} to {entry.stats.max:.3g}"
        )
        for entry in report.entries or ()
        if entry.stats and entry.stats.histogram
    ]
    if found:
        left = f" {len(found) - BARS:,} more are not drawn." if len(found) > BARS else ""
        count = len(found[0].counts)
        caption = f"Numbers of values in {count} equal intervals, from the smallest to the largest."
        yield from folding("Histograms of the values", shapes(found[:BARS], caption + left))


def _spread(address: str, stats: TensorStats) -> Bar:
    """Return the bar of a tensor; one of full length for non-finite values."""
    if stats.nonfinite:
        return Bar(address, inf, f"{stats.nonfinite:,} NOT FINITE", "failed")
    return Bar(address, stats.std or 0.0, f"{stats.std:.3g}" if stats.std else "0")


def _legend(parts: Iterable[Part]) -> Iterator[str]:
    used = {part.kind for part in parts}
    rows = (
        f'<li><svg width="12" height="12" aria-hidden="true"><rect class="tile {kind}" '
        f'width="12" height="12"/></svg>{name}</li>'
        for kind, name in (*TILES.values(), OTHER)
        if kind in used
    )
    yield f'<ul class="legend">{"".join(rows)}</ul>'


def _sections(report: InspectReport) -> list[Part]:
    """Return the sections with their tensors, if the report has these."""
    parts = []
    for section in report.sections:
        if section.bytes:
            kind, _ = TILES.get(section.role, OTHER)
            size = words.size(section.bytes)
            parts.append(Part(place(section.address), section.bytes, size, kind))
    if report.entries:
        addresses = [section.address for section in report.sections if section.bytes]
        _add_tensors(dict(zip(addresses, parts, strict=True)), report.entries)
    return parts


def _add_tensors(sections: Mapping[str, Part], entries: Iterable[TensorEntry]) -> None:
    """Put each tensor below the section that it belongs to, in the parts of its name."""
    known: dict[tuple[str, str], Part] = {}
    for entry in entries:
        key = entry.address.partition("/")[0]
        address = key if key in sections else ""
        if address not in sections:
            continue
        part = sections[address]
        name = entry.address[len(address) :].lstrip("/").replace("/", ".")
        path = ""
        for label in name.split(".", MAX_DEPTH):
            path += f".{label}"
            if (address, path) not in known:
                known[address, path] = Part(words.printable(label), 0, "", part.kind)
                part.parts.append(known[address, path])
            part = known[address, path]
            part.size += entry.bytes
            part.words = words.size(part.size)

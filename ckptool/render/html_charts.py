"""Charts as inline SVG: bars on an axis of decades, histograms, shares, and a treemap.

Widths are percentages and heights are pixels, so charts fit every width while their text keeps its
size. Charts show only numbers that the document has in words as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from ckptool.records import NamedTuple
from ckptool.render.html_document import shown

SMALLEST = -12  # the lowest decade that is told from those below
TICKS = 7  # at most, on an axis


class DecadeAxis(NamedTuple):
    """A logarithmic axis from one power of ten to another."""

    first: int
    last: int
    in_percent: bool = False

    def label(self, decade: int) -> str:
        """Return ``0.001``, or ``0.1 %``: superscript signs are missing from some fonts."""
        return f"{10.0 ** (decade + 2):g} %" if self.in_percent else f"{10.0**decade:g}"

    def at(self, value: float) -> float:
        """Return the place of a positive value, in percent of the axis."""
        if math.isinf(value):
            return 100.0
        share = (math.log10(value) - self.first) / (self.last - self.first)
        return 100 * max(0.0, min(1.0, share))

    @property
    def ticks(self) -> range:
        """The decades that have a label; the last one has."""
        step = -(-(self.last - self.first) // (TICKS - 1))
        return range(self.last, self.first - 1, -step)


def axis_of(values: Sequence[float], *, in_percent: bool = False) -> DecadeAxis:
    """Return an axis for positive values; smaller ones than it can show are at its beginning."""
    decades = [decade_of(value) for value in values]
    last = max(decades) + 1
    return DecadeAxis(max(SMALLEST, min([*decades, last - 2])), last, in_percent)


def decade_of(value: float) -> int:
    """Return the power of ten at or below a positive value, or the lowest that is told apart."""
    return max(SMALLEST, math.floor(math.log10(value)))


class Bar(NamedTuple):
    """A row of a chart: a label, the length of its bar, and the number in words."""

    label: str
    value: float  # 0: no bar
    words: str
    kind: str = "bar"  # class of the colour


def bar_chart(bars: Sequence[Bar], axis: DecadeAxis, caption: str) -> Iterator[str]:
    """Yield horizontal bars on an axis of decades, with the axis above and below them."""
    grid = "".join(f'<line x1="{_percent(axis, t)}" y1="0" x2="{_percent(axis, t)}" y2="16"/>'
                   for t in axis.ticks)  # fmt: skip
    scale = f'<li><span class="name"></span>{_scale(axis)}<span></span></li>'
    yield f'<figure><ol class="bars"{_names(bar.label for bar in bars)}>{scale}'
    for bar in bars:
        rect = ""
        if bar.value > 0:
            width = f"{max(axis.at(bar.value), 0.6):.2f}%"
            rect = f'<rect class="{bar.kind}" x="0" y="3" width="{width}" height="10"/>'
        label = f"{shown(bar.label)}: {shown(bar.words)}"
        yield (
            f'<li><span class="name">{shown(bar.label)}</span>'
            f'<svg width="100%" height="16" role="img" aria-label="{label}">{grid}{rect}</svg>'
            f"<span>{shown(bar.words)}</span></li>"
        )
    yield f"{scale}</ol><figcaption>{escape(caption)}</figcaption></figure>"


def _names(labels: Iterable[str]) -> str:
    """Return the attribute that gives names as many columns as the longest has letters."""
    return f' style="--names: {max(map(len, labels), default=0)}ch"'


class Shape(NamedTuple):
    """A row of small histograms: a label, the numbers in equal intervals, and their ends."""

    label: str
    counts: Sequence[int]
    words: str


def shapes(rows: Sequence[Shape], caption: str) -> Iterator[str]:
    """Yield a histogram in each row; the highest bar of each is as high as the row."""
    high = 28
    yield f'<figure><ol class="bars"{_names(row.label for row in rows)}>'
    for row in rows:
        most, step = max(row.counts), 100 / len(row.counts)
        rects = "".join(
            f'<rect class="bar" x="{i * step:.1f}%" width="{0.9 * step:.1f}%" '
            f'y="{high - tall:.1f}" height="{tall:.1f}"/>'
            for i, count in enumerate(row.counts)
            if count and (tall := max(high * count / most, 1.0))
        )
        label = f"{shown(row.label)}: {shown(row.words)}"
        yield (
            f'<li><span class="name">{shown(row.label)}</span>'
            f'<svg width="100%" height="{high}" role="img" aria-label="{label}">{rects}</svg>'
            f"<span>{shown(row.words)}</span></li>"
        )
    yield f"</ol><figcaption>{escape(caption)}</figcaption></figure>"


def _percent(axis: DecadeAxis, decade: int) -> str:
    return f"{100 * (decade - axis.first) / (axis.last - axis.first):.2f}%"


def _scale(axis: DecadeAxis) -> str:
    labels = "".join(_ticks(axis, 14))
    return f'<svg width="100%" height="18" aria-hidden="true">{labels}</svg>'


def _ticks(axis: DecadeAxis, y: int) -> Iterator[str]:
    anchors = {axis.first: "start", axis.last: "end"}
    apart = 1 if len(axis.ticks) <= 3 else 2 if len(axis.ticks) <= 5 else 3
    for i, tick in enumerate(axis.ticks):
        anchor = anchors.get(tick, "middle")
        at = f'x="{_percent(axis, tick)}" y="{y}" text-anchor="{anchor}"'
        kind = "quiet minor" if i % apart else "quiet"  # on a phone there is room for three
        yield f'<text class="{kind}" {at}>{axis.label(tick)}</text>'


def histogram(values: Sequence[float], caption: str) -> Iterator[str]:
    """Yield how many of the positive shares are in each decade."""
    decades = [decade_of(value) for value in values]
    last = max(decades)
    first = min(*decades, last - 2)  # one bar alone would fill the page
    counts = {decade: decades.count(decade) for decade in range(first, last + 1)}
    axis = DecadeAxis(first, last + 1, in_percent=True)
    most, step = max(counts.values()), 100 / len(counts)
    height, base = 170, 145
    said = (f"{count} from {axis.label(decade)}" for decade, count in counts.items() if count)
    label = "; ".join(said)
    yield f'<figure><svg width="100%" height="{height}" role="img" aria-label="{label}">'
    for i, count in enumerate(counts.values()):
        tall = count / most * (base - 25)
        middle = f'x="{(i + 0.5) * step:.2f}%" text-anchor="middle"'
        box = f'x="{(i + 0.1) * step:.2f}%" y="{base - tall:.1f}" width="{0.8 * step:.2f}%"'
        if count:
            yield f'<rect class="bar" {box} height="{tall:.1f}"/>'
            yield f'<text {middle} y="{base - tall - 5:.1f}">{count:,}</text>'
    yield from _ticks(axis, base + 16)
    yield f'<line x1="0" y1="{base}" x2="100%" y2="{base}"/></svg>'
    yield f"<figcaption>{escape(caption)}</figcaption></figure>"


# ------------------------------------------------------------------------------------------- shares


def shares(rows: Sequence[tuple[str, Sequence[tuple[str, str, int]]]]) -> Iterator[str]:
    """Yield a bar for each row, cut into (class, word, number): all bars have the same scale."""
    most = max(sum(number for _, _, number in parts) for _, parts in rows)
    yield '<figure><ol class="bars shares">'
    for label, parts in rows:
        rects, at = [], 0.0
        for kind, _, number in parts:
            width = 100 * number / most
            rects.append(
                f'<rect class="{kind}" x="{at:.2f}%" y="2" width="{width:.2f}%" height="12"/>'
            )
            at += width
        said = ", ".join(f"{number} {word}" for _, word, number in parts if number)
        yield (
            f'<li><span class="name">{shown(label)}</span>'
            f'<svg width="100%" height="16" role="img" aria-label="{shown(label)}: {said}">'
            f"{''.join(rects)}</svg><span>{said}</span></li>"
        )
    yield "</ol></figure>"


# ------------------------------------------------------------------------------------------ treemap


@dataclass(slots=True)
class Part:
    """A rectangle of a treemap, with those that it consists of."""

    label: str
    size: float
    words: str  # the size for people
    kind: str = "tile-other"  # class of the colour
    parts: list[Part] = field(default_factory=list)


WIDTH, HEIGHT = 900.0, 380.0  # of the space in which rectangles are made nearly square
HEAD = 18.0  # pixels for the label of a rectangle that has others in it
SHARED = (110.0, 60.0)  # the smallest rectangle that shows its parts
LABELLED = (34.0, 14.0)  # the smallest one that has a label
MOST = 60  # rectangles in one; the smallest are one rectangle together


class Box(NamedTuple):
    """A rectangle: left and width in hundredths of the whole, top and height in pixels."""

    x: float
    y: float
    width: float
    height: float


def treemap(parts: Sequence[Part], caption: str) -> Iterator[str]:
    """Yield rectangles whose areas are the sizes of the parts, the largest first."""
    yield (
        f'<figure><svg width="100%" height="{HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(caption)}">'
    )
    yield from _tiles(parts, Box(0, 0, 100, HEIGHT))
    yield f"</svg><figcaption>{escape(caption)}</figcaption></figure>"


def _tiles(parts: Sequence[Part], box: Box) -> Iterator[str]:
    for part, tile in squarified(_largest(parts), box):
        wide = tile.width * WIDTH / 100
        yield (
            f'<svg x="{tile.x:.3f}%" y="{tile.y:.1f}" width="{tile.width:.3f}%" '
            f'height="{tile.height:.1f}"><title>{shown(part.label)}: {shown(part.words)}</title>'
            f'<rect class="tile {part.kind}" width="100%" height="100%"/>'
        )
        if wide >= LABELLED[0] and tile.height >= LABELLED[1]:
            size = f'<span class="size"> {shown(part.words)}</span>'
            label = f'<div class="on-tile">{shown(part.label)}{size}</div>'
            yield f'<foreignObject width="100%" height="{HEAD:.0f}">{label}</foreignObject>'
        yield "</svg>"
        if part.parts and wide >= SHARED[0] and tile.height >= SHARED[1]:
            inner = Box(tile.x + 0.3, tile.y + HEAD, tile.width - 0.6, tile.height - HEAD - 3)
            yield from _tiles(part.parts, inner)


def _largest(parts: Sequence[Part]) -> list[Part]:
    """Return the largest parts, and one for all others."""
    ordered = sorted(parts, key=lambda part: -part.size)
    shown_parts, rest = ordered[:MOST], ordered[MOST:]
    if rest:
        total = sum(part.size for part in rest)
        shown_parts.append(Part(f"and {len(rest):,} more", total, "", rest[0].kind))
    return shown_parts


def squarified(parts: Sequence[Part], box: Box) -> Iterator[tuple[Part, Box]]:
    """Yield each part with its rectangle in ``box``, in strips of rectangles that are near squares.

    The method is that of Bruls, Huizing and van Wijk: a strip along the shorter side takes parts,
    the largest first, as long as they become more like squares.
    """
    rest = sorted((part for part in parts if part.size > 0), key=lambda part: -part.size)
    while rest:
        scale = box.width * WIDTH / 100 * box.height / sum(part.size for part in rest)
        is_wide = box.width * WIDTH / 100 >= box.height
        side = box.height if is_wide else box.width * WIDTH / 100
        count = 1
        while count < len(rest) and _longest(rest[: count + 1], scale, side) <= _longest(
            rest[:count], scale, side
        ):
            count += 1
        strip, rest = rest[:count], rest[count:]
        total = sum(part.size for part in strip)
        thick = total * scale / side
        at = 0.0
        for part in strip:
            share = part.size / total
            if is_wide:
                yield part, Box(box.x, box.y + at * box.height, thick * 100 / WIDTH,
                                share * box.height)  # fmt: skip
            else:
                yield part, Box(box.x + at * box.width, box.y, share * box.width, thick)
            at += share
        box = (
            Box(box.x + thick * 100 / WIDTH, box.y, box.width - thick * 100 / WIDTH, box.height)
            if is_wide
            else Box(box.x, box.y + thick, box.width, box.height - thick)
        )


def _longest(strip: Sequence[Part], scale: float, side: float) -> float:
    """Return the ratio of the sides of the rectangle that is least like a square."""
    thick = sum(part.size for part in strip) * scale / side
    lengths = (part.size * scale / thick for part in strip)
    return max(max(thick / length, length / thick) for length in lengths)

"""Self-contained HTML documents: the frame, its colours, tables, and pages of text as HTML.

A document has no script, no font and no link to anything outside, so it can be attached to a pull
request or kept for years. Every text from a file is made printable and escaped. The colours are a
table, from which the style is made, so that a test can compute their contrast. A document fits
every width: on a phone each row of a table is a paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby

from ckptool.render import text as words
from ckptool.render.page import Grid, Line, Page, Piece

LIMIT = 400  # characters of a name from a file

# Scheme -> use of a colour -> the colour. Meanings of text have the names that pages give them.
COLORS: Mapping[str, Mapping[str, str]] = {
    "light": {
        "paper": "#ffffff", "ink": "#1b1f24", "quiet": "#57606a", "line": "#d0d7de",
        "bar": "#0969da", "edge": "#57606a", "name": "#0a5c74", "good": "#116329",
        "warning": "#7a4d00", "error": "#a40e26", "info": "#0550ae",
        "tile-model": "#cfe3fb", "tile-ema": "#c8ecd0", "tile-raw": "#fbe3c5",
        "tile-optimizer": "#e3d5f7", "tile-other": "#e4e7eb",
    },
    "dark": {
        "paper": "#14171c", "ink": "#e8eaed", "quiet": "#a2abb5", "line": "#3b424b",
        "bar": "#58a6ff", "edge": "#98a1ab", "name": "#76d4e6", "good": "#56d364",
        "warning": "#e3b341", "error": "#ff8f88", "info": "#79b8ff",
        "tile-model": "#173a63", "tile-ema": "#174529", "tile-raw": "#5a3d12",
        "tile-optimizer": "#432a66", "tile-other": "#343a42",
    },
}  # fmt: skip
TEXTS = ("ink", "quiet", "name", "good", "warning", "error", "info")  # colours of text on paper


MANY = 7  # columns; tables with more are stacked unless the window is wide
MANY_WIDTH = "72rem"
LONG_WORD = re.compile(r"[^\s<>]{25}")  # of a cell; shorter ones stay whole


def _variables(scheme: str) -> str:
    return " ".join(f"--{use}: {color};" for use, color in COLORS[scheme].items())


def _stacked(tables: str) -> str:
    """Return the style of tables whose rows are paragraphs: the name, and under it the cells."""
    return f"""{tables} thead {{ display: none; }} {tables}, {tables} tbody {{ display: block; }}
  {tables} tr {{ display: block; padding: .35rem 0; border-bottom: 1px solid var(--line); }}
  {tables} td {{ border: 0; padding: 0 1rem 0 0; display: inline-block; text-align: left;
    min-width: 0; max-width: 100%; }}
  {tables} td:first-child {{ display: block; min-width: 0; }}
  {tables} td:empty {{ display: none; }}
  {tables} td[data-label]:not([data-label=""])::before {{ content: attr(data-label) " ";
    color: var(--quiet); }}"""


STYLE = f"""
:root {{ color-scheme: light dark; {_variables("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables("dark")} }} }}
@media print {{ :root {{ {_variables("light")} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; margin: .5rem 0; }}
h2 {{ font-size: 1.05rem; display: inline; }} h3 {{ font-size: .95rem; margin: 1rem 0 .25rem; }}
p {{ margin: .15rem 0; white-space: pre-line; overflow-wrap: anywhere; }}
details {{ margin-top: 1.2rem; }}
summary {{ cursor: pointer; margin-bottom: .4rem; break-after: avoid; }}
article + article {{ margin-top: 3rem; border-top: 2px solid var(--line); padding-top: 1rem; }}
.name, code {{ font-family: ui-monospace, monospace; font-size: .88em; overflow-wrap: anywhere; }}
.title {{ font-weight: 600; }} .label, .quiet {{ color: var(--quiet); }}
{" ".join(f".{use} {{ color: var(--{use}); }}" for use in TEXTS[2:])}
.error, .good, .warning {{ font-weight: 600; }} .state {{ white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-size: .9rem; white-space: pre-line; overflow-wrap: break-word; }}
th {{ color: var(--quiet); font-weight: normal; }}
td.long, td:first-child:has(.name) {{ min-width: 11em; overflow-wrap: anywhere; }}
td.right, th.right {{ text-align: right; }} td.right {{ white-space: nowrap; }}
figure {{ margin: .5rem 0 1rem; }} svg {{ display: block; overflow: hidden; }}
figcaption {{ color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }}
svg text {{ font: 12px system-ui, sans-serif; fill: var(--ink); }}
svg text.quiet {{ fill: var(--quiet); }} svg line {{ stroke: var(--line); }}
svg rect.bar {{ fill: var(--bar); }} svg rect.passed {{ fill: var(--good); }}
svg rect.failed {{ fill: var(--error); }} svg rect.unchecked {{ fill: var(--edge); }}
svg rect.warned {{ fill: var(--warning); }} svg rect.noted {{ fill: var(--info); }}
svg .tile {{ stroke: var(--edge); stroke-width: 1px; }}
.on-tile {{ font: 12px/18px system-ui, sans-serif; padding: 0 4px; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }}
{" ".join(f".{use} {{ fill: var(--{use}); }}" for use in COLORS["light"] if use[:4] == "tile")}
ul.legend {{ list-style: none; padding: 0; margin: .3rem 0; display: flex; flex-wrap: wrap;
  gap: .2rem 1.2rem; font-size: .85rem; }}
ul.legend svg {{ display: inline-block; vertical-align: -2px; margin-right: .3rem; }}
ol.bars {{ list-style: none; padding: 0; margin: 0; }}
ol.bars li {{ display: grid; grid-template-columns: clamp(7rem, var(--names, 17rem), 45%) 1fr 9rem;
  gap: 0 .8rem; align-items: center; font-size: .85rem; padding: .1rem 0; }}
ol.shares li {{ grid-template-columns: 8rem 1fr 16rem; }}
ol.bars li > :last-child {{ text-align: right; font-variant-numeric: tabular-nums; }}
footer {{ margin-top: 2rem; color: var(--quiet); font-size: .85rem; }}
@media screen and (max-width: {MANY_WIDTH}) {{ {_stacked("table.many")}
  .minor {{ display: none; }} }}
@media screen and (max-width: 40rem) {{ {_stacked("table")}
  svg .size {{ display: none; }}
  ol.bars li {{ grid-template-columns: 1fr 5rem; }}
  ol.bars li > .name {{ grid-column: 1 / -1; }} ol.shares li {{ grid-template-columns: 1fr; }} }}
@media print {{ body {{ max-width: none; padding: 0; font-size: 10pt; }}
  .wide {{ overflow: visible; }} tr, svg, ol.bars li {{ break-inside: avoid; }}
  .minor {{ display: none; }} .many th, .many td {{ font-size: 7pt; padding-right: .5em; }}
  ol.bars li {{ grid-template-columns: 15rem 1fr 6rem; }}
  ol.shares li {{ grid-template-columns: 6rem 1fr 15rem; }}
  ::details-content {{ content-visibility: visible; block-size: auto; }} }}
"""


def document(title: str, body: Iterable[str]) -> str:
    """Return a document; ``title`` is text, ``body`` is HTML."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown(title)}</title>\n<style>{STYLE}</style></head>\n<body>"
    )
    return "\n".join((head, *body, "</body></html>"))


def shown(text: object) -> str:
    """Return a text, maybe from a file, as HTML."""
    return escape(words.printable(text, LIMIT))


def folding(title: str, body: Iterable[str], *, is_open: bool = True) -> Iterator[str]:
    """Yield a part of a document that its reader can fold; ``title`` is HTML."""
    yield f"<details{' open' if is_open else ''}><summary><h2>{title}</h2></summary>"
    yield from body
    yield "</details>"


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    left_out: int = 0,
    right: Collection[int] = (),
) -> Iterator[str]:
    """Yield a table; ``heads`` are texts, cells are HTML, columns of ``right`` are numbers."""
    sides = [' class="right"' if i in right else "" for i in range(len(heads))]
    many = ' class="many"' if len(heads) > MANY else ""
    yield f'<div class="wide"><table{many}>'
    if any(heads):
        cells = (f"<th{side}>{escape(head)}</th>" for head, side in zip(heads, sides, strict=True))
        yield f"<thead><tr>{''.join(cells)}</tr></thead>"
    yield "<tbody>"
    labels = ["", *(f' data-label="{escape(head)}"' for head in heads[1:])]
    for row in rows:
        cells = (
            f"<td{side or _length(cell)}{label}>{cell}</td>"
            for cell, side, label in zip(row, sides, labels, strict=True)
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    if left_out > 0:
        yield f"<p>and {left_out:,} more</p>"


def _length(cell: str) -> str:
    return ' class="long"' if LONG_WORD.search(cell) else ""


# ----------------------------------------------------------------------------------- pages of text


def page_as_html(page: Page, closed: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield a page of text; what is under a title folds, and is closed if it is in ``closed``."""
    for title, blocks in _parts(page):
        if title:
            yield from folding(escape(title), blocks, is_open=title not in closed)
        else:
            yield from blocks


def _parts(page: Page) -> list[tuple[str, list[str]]]:
    """Return the titles of a page, the first one empty, with the HTML below each."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for block in page:
        title = block.title if isinstance(block, Grid) else _title(block)
        if title:
            parts.append((title, []))
        if isinstance(block, Grid):
            parts[-1][1].extend(_grid(block))
        else:
            parts[-1][1].extend(_paragraph(block.pieces[bool(title) :]))
    return parts


def _title(block: Line) -> str:
    """Return the text of a title: it begins with an empty line, as in the output on a terminal."""
    text, meaning = block.pieces[0] if block.pieces else ("", "")
    return text.strip() if meaning == "title" and text.startswith("\n") else ""


def _paragraph(pieces: Sequence[Piece]) -> Iterator[str]:
    if text := _pieces(pieces):
        yield f"<p>{text}</p>"


def _grid(grid: Grid) -> Iterator[str]:
    """Yield the rows of a grid as tables, between the lines that span all columns."""
    for is_note, group in groupby(grid.rows, lambda row: isinstance(row, Line)):
        if is_note:
            for note in group:
                yield from _paragraph(note.pieces if isinstance(note, Line) else ())
        else:
            yield from _table_of(grid, [row for row in group if not isinstance(row, Line)])


def _table_of(grid: Grid, rows: Sequence[tuple[Line, ...]]) -> Iterator[str]:
    heads = ["", *grid.heads] if grid.title else list(grid.heads)
    heads += [""] * (len(grid.sides) - len(heads))
    columns = [i for i in range(len(heads)) if heads[i] or any(row[i].text.strip() for row in rows)]
    cells = ([_indent(row[0]) * (i == 0) + _pieces(row[i].pieces) for i in columns] for row in rows)
    right = [place for place, i in enumerate(columns) if grid.sides[i] == "right"]
    yield from table([heads[i] for i in columns], cells, right=right)


def _indent(cell: Line) -> str:
    """Return the blanks at the beginning of a name in a tree, but for those that every row has."""
    blanks = len(cell.text) - len(cell.text.lstrip(" "))
    return "&emsp;" * (blanks // 2 - 1)


def _pieces(pieces: Sequence[Piece]) -> str:
    """Return pieces as HTML, without blanks at the ends."""
    parts = [
        f'<span class="{meaning}">{escape(text)}</span>' if meaning else escape(text)
        for text, meaning in _stripped(pieces)
    ]
    return "".join(parts)


def _stripped(pieces: Sequence[Piece]) -> list[Piece]:
    kept = [piece for piece in pieces if piece[0]]
    while kept and not kept[0][0].strip():
        del kept[0]
    while kept and not kept[-1][0].strip():
        del kept[-1]
    if kept:
        kept[0] = (kept[0][0].lstrip(), kept[0][1])
        kept[-1] = (kept[-1][0].rstrip(), kept[-1][1])
    return kept

"""Pages as lines of at most a number of columns, for terminals; and whole, for pipes and files.

What gives way in a table that is too wide, in this order:

1. The beginning that all key paths share is told once, above the table.
2. Columns leave in the order of ``Grid.drops``, until names have the room of ``NAME`` columns; one
   that left comes back if it fits beside whole names.
3. A column of text is wrapped in its place.
4. Names lose their middle, at dots and slashes.
5. Rows are stacked: the name has a line of its own, all cells but bars stand under it, with their
   heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import IO

from ckptool.render.page import Grid, Line, Page, Piece, line
from ckptool.render.wrapping import joined, lines_of, shortened, width_of, wrapped

GAP = "  "  # between columns
NAME = 44  # columns that a name gets before others leave
TEXT = 24  # columns that text gets before rows are stacked
SHARED = 8  # characters of a common beginning that are worth a line
STACK = "  "  # indent of the cells under a name, from that of the name

Row = tuple[Line, ...]


def draw(page: Page, stream: IO[str], width: int | None = None) -> None:
    """Write a page to ``stream``, in lines of at most ``width`` columns; None: whole ones."""
    stream.writelines(f"{each.text}\n" for each in laid_out(page, width))


def laid_out(page: Page, width: int | None) -> Iterator[Line]:
    """Yield the lines of a page, of at most ``width`` columns; None: whole ones."""
    for block in page:
        rows = lines_of(block) if isinstance(block, Line) else _grid(block, width)
        for row in rows:
            is_whole = width is None or isinstance(block, Grid) or not block.wraps
            parts = [row] if width is None or is_whole else wrapped(row, width)
            yield from map(_stripped, parts)


def _stripped(made: Line) -> Line:
    if made.pieces and made.pieces[-1][0][-1:] not in {"", " "}:
        return made
    pieces = list(made.pieces)
    while pieces and not pieces[-1][0].rstrip(" "):
        pieces.pop()
    if pieces:
        pieces[-1] = (pieces[-1][0].rstrip(" "), pieces[-1][1])
    return made._replace(pieces=tuple(pieces))


# ------------------------------------------------------------------------------------------- tables


def _grid(grid: Grid, width: int | None) -> Iterator[Line]:
    rows = [row for row in grid.rows if not isinstance(row, Line)]
    widths = _widths(grid, rows)
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        yield from _table(grid, grid.rows, range(len(widths)), widths, width)
    else:
        yield from _narrow(grid, width)


def _narrow(grid: Grid, width: int) -> Iterator[Line]:
    """Yield a table that is wider than the terminal."""
    prefix = _shared(grid)
    rows = [
        row if isinstance(row, Line) else (_without(row[0], prefix), *row[1:]) for row in grid.rows
    ]
    told = line(("  all names begin with ", "quiet"), (prefix, "name"))
    note = list(wrapped(told, width)) if prefix else []
    found = [row for row in rows if not isinstance(row, Line)]
    widths = _widths(grid, found)
    kept = [i for i, w in enumerate(widths) if w]
    least = [min(w, TEXT) if grid.sides[i] == "text" else w for i, w in enumerate(widths)]
    is_shortened = _has_names(found)
    least[0] = min(widths[0], NAME) if is_shortened else widths[0]
    left_out = []
    for i in grid.drops:
        if _total(least, kept) > width and i in kept:
            kept.remove(i)
            left_out.append(i)
    whole = [widths[0], *least[1:]]
    for i in reversed(left_out[:-1]):  # a narrow column fits where a wide one had to leave
        if _total(whole, [*kept, i]) <= width:
            kept = sorted([*kept, i])
            left_out.remove(i)
    over = _total(widths, kept) - width
    if _total(least, kept) > width:
        yield from _titled(grid, note)
        yield from _stacked(grid, rows, width)
        return
    for i in sorted(kept, key=lambda i: grid.sides[i] != "text"):  # text gives way before names
        taken = min(max(over, 0), widths[i] - least[i])
        widths[i], over = widths[i] - taken, over - taken
    if is_shortened:
        rows = [
            row if isinstance(row, Line) else (_named(row[0], widths[0]), *row[1:]) for row in rows
        ]
    if note:
        yield from _titled(grid, note)
    yield from _table(grid, rows, kept, widths, width, titled=not note)
    yield from _unshown(grid, left_out, width)


def _unshown(grid: Grid, left_out: Sequence[int], width: int) -> Iterator[Line]:
    """Yield the heads of the columns that were left out."""
    heads = _heads(grid)
    told = [i for i in sorted(left_out) if heads and grid.sides[i] != "bar"]
    names = ", ".join(filter(None, (heads[i] for i in told)))
    if names:
        yield from wrapped(line((f"  not shown, for want of room: {names}", "quiet")), width)


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[i] for i in kept) + len(GAP) * (len(kept) - 1)


def _widths(grid: Grid, rows: Sequence[Row]) -> list[int]:
    heads = _heads(grid) or ("",) * len(grid.sides)
    return [
        max(width_of(heads[i]), *(width_of(row[i].text) for row in rows), 0)
        for i in range(len(grid.sides))
    ]


def _heads(grid: Grid) -> tuple[str, ...]:
    """Return what stands above each column; nothing stands above any if there are no heads."""
    is_all = len(grid.heads) >= len(grid.sides)
    return grid.heads if is_all else (grid.title, *grid.heads) if grid.heads else ()


def _titled(grid: Grid, note: Sequence[Line]) -> Iterator[Line]:
    """Yield the title on a line of its own, and what is told once for all rows."""
    if grid.title:
        yield from (line(""), line((grid.title, "title")))
    yield from note


_FIRST = ("quiet", "title")  # meaning of what stands above the first column


def _table(
    grid: Grid,
    rows: Sequence[Row | Line],
    kept: Sequence[int],
    widths: Sequence[int],
    width: int | None,
    *,
    titled: bool = True,
) -> Iterator[Line]:
    heads = _heads(grid)
    if grid.title and titled:
        yield line("")
    if heads:
        first = line((heads[0] if titled or not grid.title else "", _FIRST[bool(grid.title)]))
        yield from _row(grid, (first, *(line((h, "quiet")) for h in heads[1:])), kept, widths)
    elif grid.title and titled:
        yield line((grid.title, "title"))
    for row in rows:
        if isinstance(row, Line):
            yield from wrapped(row, width) if width else (row,)
        else:
            yield from _row(grid, row, kept, widths)


def _row(grid: Grid, row: Row, kept: Sequence[int], widths: Sequence[int]) -> Iterator[Line]:
    """Yield a row: one line, or several if text is wrapped in its column."""
    cells = [row[i] for i in kept]
    if all(width_of(row[i].text) <= widths[i] for i in kept if grid.sides[i] == "text"):
        yield _aligned(grid, cells, kept, widths)
        return
    parts = [
        wrapped(row[i], widths[i]) if grid.sides[i] == "text" else iter((row[i],)) for i in kept
    ]
    for each in zip_longest(*parts, fillvalue=line("")):
        yield _aligned(grid, each, kept, widths)


def _aligned(grid: Grid, cells: Sequence[Line], kept: Sequence[int], widths: Sequence[int]) -> Line:
    """Return cells as one line, with the blanks between them: a list has millions of cells."""
    pieces: list[Piece] = []
    blanks = 0
    for i, cell in zip(kept, cells, strict=True):
        text = cell.text
        missing, is_right = max(widths[i] - width_of(text), 0), grid.sides[i] == "right"
        if text:
            blanks += missing if is_right else 0
            pieces += ((" " * blanks, ""), *cell.pieces) if blanks else cell.pieces
            blanks = 0 if is_right else missing
        else:
            blanks += missing
        blanks += len(GAP)
    return Line(tuple([piece for piece in pieces if piece[0]]))


def _stacked(grid: Grid, rows: Sequence[Row | Line], width: int) -> Iterator[Line]:
    """Yield each row as the line of its name, and under it the cells with their heads."""
    heads = [*_heads(grid), *("" for _ in grid.sides)]
    shown = [i for i in range(1, len(grid.sides)) if grid.sides[i] != "bar"]
    for row in rows:
        if isinstance(row, Line):
            yield from wrapped(row, width)
            continue
        name = row[0].text
        if name.strip():
            yield from wrapped(_named(row[0], width), width)
        indent = STACK + name[: len(name) - len(name.lstrip(" "))]
        cells = [
            joined(line((f"{head} ", "quiet")) if head else "", *_trimmed(cell))
            for head, cell in ((heads[i], row[i]) for i in shown)
            if cell.text.strip()
        ]
        yield from _filled(cells, indent, width)


def _filled(cells: Sequence[Line], indent: str, width: int) -> Iterator[Line]:
    """Yield lines with as many cells as there is room for."""
    under = line(indent)
    for cell in cells:
        wider = joined(under, GAP if under.text.strip() else "", cell)
        if width_of(wider.text) > width and under.text.strip():
            yield from wrapped(under, width, len(STACK))
            wider = joined(indent, cell)
        under = wider
    if under.text.strip():
        yield from wrapped(under, width, len(STACK))


def _trimmed(cell: Line) -> Iterator[Line]:
    text = cell.text
    start = len(text) - len(text.lstrip(" "))
    pieces = cell.pieces
    yield Line(((pieces[0][0][start:], pieces[0][1]), *pieces[1:])) if pieces else cell


# -------------------------------------------------------------------------------------------- names


def _has_names(rows: Sequence[Row]) -> bool:
    return any(meaning == "name" for row in rows for _, meaning in row[0].pieces)


def _names(row: Row) -> Iterator[str]:
    return (text.lstrip(" ") for text, meaning in row[0].pieces if meaning == "name")


def _shared(grid: Grid) -> str:
    """Return the beginning that all key paths share, if it is worth telling once."""
    names = [name for row in grid.rows if not isinstance(row, Line) for name in _names(row)]
    if not grid.names or len(names) < 2:
        return ""
    first, last = min(names), max(names)
    ends = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    shared = first[: next(ends, min(len(first), len(last)))]
    shared = shared[: max(shared.rfind("/"), shared.rfind(".")) + 1]
    return shared if len(shared) >= SHARED and shared not in names else ""


def _without(cell: Line, prefix: str) -> Line:
    """Return the cell of a name without the beginning that is told once; its indent stays."""
    pieces = (
        (text.replace(prefix, "", 1) if meaning == "name" else text, meaning)
        for text, meaning in cell.pieces
    )
    return cell._replace(pieces=tuple(pieces))


def _named(cell: Line, width: int) -> Line:
    """Return a cell whose name is shortened to the width of the column."""
    others = sum(width_of(text) for text, meaning in cell.pieces if meaning != "name")
    pieces = []
    for text, meaning in cell.pieces:
        if meaning == "name":
            indent = text[: len(text) - len(text.lstrip(" "))]
            room = max(width - others - len(indent), 1)
            pieces.append((indent + shortened(text[len(indent) :], room), meaning))
        else:
            pieces.append((text, meaning))
    return cell._replace(pieces=tuple(pieces))

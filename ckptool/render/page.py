"""Pages of text: lines and grids of pieces, each with a meaning instead of a colour.

Views build pages and do not know where they are drawn. ``terminal.py`` draws them with Rich, in
colour and wrapped; :func:`draw` draws them into pipes and files, in whole lines without blanks at
their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple, TypeVar

Piece = tuple[str, str]  # (text, meaning): title, label, name, good, warning, error, info, quiet


class Line(NamedTuple):
    """Pieces one after the other; a newline in a piece begins a new line."""

    pieces: tuple[Piece, ...]
    wraps: bool = True  # else only the terminal breaks it, for text that people copy

    @property
    def text(self) -> str:
        """The text without the meanings."""
        return "".join(content for content, _ in self.pieces)


class Grid:
    """Rows of cells in columns, which alignment separates, not ruled lines."""

    def __init__(self, *sides: str, optional: range = range(0)) -> None:
        self.sides = sides  # left or right, for each column
        self.optional = optional  # columns that a narrow terminal may leave out, the last first
        self.rows: list[tuple[Line, ...]] = []

    def add_row(self, *cells: Line | str) -> None:
        """Append a row; missing cells at its end are empty."""
        lines = tuple(line(cell) if isinstance(cell, str) else cell for cell in cells)
        self.rows.append(lines + (line(""),) * (len(self.sides) - len(lines)))


Block = Line | Grid
Page = Iterator[Block]


def line(*pieces: Piece | str, wraps: bool = True) -> Line:
    """Return a line of pieces; plain strings have no meaning."""
    return Line(tuple((p, "") if isinstance(p, str) else p for p in pieces), wraps)


Report = TypeVar("Report")


def one_by_one(show: Callable[[Report], Page]) -> Callable[[Sequence[Report]], Page]:
    """Make ``show`` take several reports; there is an empty line between their pages."""

    def show_each(reports: Sequence[Report]) -> Page:
        for i, report in enumerate(reports):
            if i:
                yield line("")
            yield from show(report)

    return show_each


# ---------------------------------------------------------------------------------- pipes and files


GAP = "  "  # between columns


def draw(page: Page, stream: IO[str]) -> None:
    """Write a page to ``stream``."""
    for block in page:
        text = block.text if isinstance(block, Line) else _grid(block)
        stream.writelines(f"{row.rstrip()}\n" for row in text.split("\n"))


def _grid(grid: Grid) -> str:
    widths = [0] * len(grid.sides)
    for row in grid.rows:
        for i, cell in enumerate(row):
            widths[i] = max(widths[i], *(len(part) for part in cell.text.split("\n")))
    return "\n".join(_row(row, grid.sides, widths) for row in grid.rows)


def _row(row: tuple[Line, ...], sides: tuple[str, ...], widths: list[int]) -> str:
    lead, is_apart, cells = "", False, []
    for cell, side, width in zip(row, sides, widths, strict=True):
        above, _, text = cell.text.rpartition("\n")
        lead += f"{above}\n" if above else ""
        is_apart |= cell.text.startswith("\n")
        cells.append(text.rjust(width) if side == "right" else text.ljust(width))
    return (lead or "\n" * is_apart) + GAP.join(cells)

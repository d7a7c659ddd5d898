"""Pages of text: lines and grids of pieces, each with a meaning instead of a colour.

Views build pages and do not know where they are drawn. ``layout.py`` makes them lines of a width:
``terminal.py`` colours these with Rich, :func:`~ckptool.render.layout.draw` writes them into pipes
and files, whole and without blanks at their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ckptool.records import NamedTuple

Piece = tuple[str, str]  # (text, meaning): title, label, name, good, warning, error, info, quiet


class Line(NamedTuple):
    """Pieces one after the other; a newline in a piece begins a new line."""

    pieces: tuple[Piece, ...]
    wraps: bool = True  # else only the terminal breaks it, for text that people copy

    @property
    def text(self) -> str:
        """The text without the meanings."""
        if len(self.pieces) == 1:  # as most cells
            return self.pieces[0][0]
        return "".join([content for content, _ in self.pieces])


class Grid:
    """Rows of cells in columns, which alignment separates, not ruled lines.

    Attributes:
        sides: left or right, for each column; text is left, and may be wrapped; a bar is left, and
            has no place where rows are stacked.
        title: what stands above the first column, under an empty line; it may be empty.
        heads: what stands above the columns, or above those after the title; or nothing.
        drops: columns that a narrow terminal leaves out, in this order.
        names: whether the names in the first column are whole key paths, of which a common
            beginning may be told once.
        rows: the cells of each row; a line alone spans all columns.
    """

    def __init__(
        self,
        *sides: str,
        title: str = "",
        heads: Sequence[str] = (),
        drops: Sequence[int] = (),
        names: bool = False,
    ) -> None:
        self.sides = sides
        self.title = title
        self.heads = tuple(heads)
        self.drops = tuple(drops)
        self.names = names
        self.rows: list[tuple[Line, ...] | Line] = []

    def add_row(self, *cells: Line | str) -> None:
        """Append a row; missing cells at its end are empty."""
        lines = tuple(line(cell) if isinstance(cell, str) else cell for cell in cells)
        self.rows.append(lines + (line(""),) * (len(self.sides) - len(lines)))

    def add_note(self, *pieces: Piece | str) -> None:
        """Append a line that spans all columns."""
        self.rows.append(line(*pieces))

    def fitted(self, fit: Callable[[str], str]) -> Grid:
        """Return the same grid with every text replaced by ``fit(text)``."""
        grid = Grid(
            *self.sides,
            title=fit(self.title),
            heads=[fit(head) for head in self.heads],
            drops=self.drops,
            names=self.names,
        )
        grid.rows = [
            _mapped(row, fit) if isinstance(row, Line) else tuple(_mapped(c, fit) for c in row)
            for row in self.rows
        ]
        return grid


Block = Line | Grid
Page = Iterator[Block]


def line(*pieces: Piece | str, wraps: bool = True) -> Line:
    """Return a line of pieces; plain strings have no meaning."""
    return Line(tuple([(p, "") if isinstance(p, str) else p for p in pieces]), wraps)


def _mapped(line: Line, fit: Callable[[str], str]) -> Line:
    return line._replace(pieces=tuple((fit(text), meaning) for text, meaning in line.pieces))


def fitted(page: Page, fit: Callable[[str], str]) -> Page:
    """Yield a page with every text replaced by ``fit(text)``."""
    for block in page:
        yield _mapped(block, fit) if isinstance(block, Line) else block.fitted(fit)


Report = TypeVar("Report")


def one_by_one(show: Callable[[Report], Page]) -> Callable[[Sequence[Report]], Page]:
    """Make ``show`` take several reports; there is an empty line between their pages."""

    def show_each(reports: Sequence[Report]) -> Page:
        for i, report in enumerate(reports):
            if i:
                yield line("")
            yield from show(report)

    return show_each

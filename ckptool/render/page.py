"""What a view is made of: lines and grids of pieces, each with a meaning instead of a colour.

Views build pages without knowing where they are drawn: ``terminal.py`` draws them with Rich, in
colour and wrapped; ``plain.py`` draws them into pipes and files, one whole line each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Piece = tuple[str, str]  # (text, meaning): title, label, name, good, warning, error, info, quiet


class Line(NamedTuple):
    """Pieces one after the other; a newline in a piece begins a new line."""

    pieces: tuple[Piece, ...]
    wraps: bool = True  # else it is left to the terminal to break it: for what people copy

    @property
    def text(self) -> str:
        """Without the meanings."""
        return "".join(content for content, _ in self.pieces)


class Grid:
    """Rows of cells in columns; told apart by alignment, without lines."""

    def __init__(self, *sides: str) -> None:
        self.sides = sides  # left or right, for each column
        self.rows: list[tuple[Line, ...]] = []

    def add_row(self, *cells: Line | str) -> None:
        """Append a row; missing cells at its end are empty."""
        lines = tuple(line(cell) if isinstance(cell, str) else cell for cell in cells)
        self.rows.append(lines + (line(""),) * (len(self.sides) - len(lines)))


Block = Line | Grid
Page = Iterator[Block]


def line(*pieces: Piece | str, wraps: bool = True) -> Line:
    """A line of pieces; plain strings have no meaning."""
    return Line(tuple((p, "") if isinstance(p, str) else p for p in pieces), wraps)

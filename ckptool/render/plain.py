"""Draws pages into pipes and files: whole lines, no colour, no blanks at their ends."""

from __future__ import annotations

from typing import IO

from ckptool.render.page import Grid, Line, Page

GAP = "  "  # between columns


def draw(page: Page, stream: IO[str]) -> None:
    """Write a page."""
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

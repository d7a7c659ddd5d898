"""Draws pages on a terminal with Rich, in colour and wrapped; leaves pipes to ``plain.py``."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from ckptool.render import plain
from ckptool.render.page import Grid, Line, Page
from ckptool.render.pages import page_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 10_000  # a pipe wraps nothing: grep wants whole lines

# Colours by meaning; names of the 16 ANSI colours, so that they suit dark and light themes alike.
STYLES = {
    "title": "bold",
    "label": "dim",
    "name": "cyan",
    "good": "green",
    "warning": "yellow",
    "error": "bold red",
    "info": "blue",
    "quiet": "dim",
}


def show(report: Any, stream: IO[str], color: str = "auto") -> None:
    """Print any report, or a list of verifications; ``color`` is auto, always or never."""
    show_page(page_of(report), stream, color)


def show_page(page: Page, stream: IO[str], color: str = "auto") -> None:
    """Print a page; ``color`` is auto, always or never."""
    if not stream.isatty() and color != "always":
        plain.draw(page, stream)  # Rich is not imported: 25 ms
        return
    console = console_for(stream, color)
    with console.capture() as captured:
        for block in page:
            if isinstance(block, Line):
                console.print(_text(block), soft_wrap=not block.wraps)
            else:
                console.print(_table(block))
    # Rich fills every cell of a column; nobody wants to select the blanks.
    stream.writelines(f"{line.rstrip()}\n" for line in captured.get().rstrip("\n").split("\n"))


def console_for(stream: IO[str], color: str) -> Console:
    """A console on ``stream``."""
    from rich.console import Console

    forced = {"always": True, "never": False}.get(color)
    return Console(
        file=stream,
        force_terminal=forced,
        no_color=True if color == "never" else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
        width=None if stream.isatty() else PIPE_WIDTH,
    )


def _text(line: Line) -> Text:
    from rich.text import Text

    drawn = Text(no_wrap=False, overflow="fold")
    for content, meaning in line.pieces:
        drawn.append(content, style=STYLES.get(meaning, ""))
    return drawn


def _table(grid: Grid) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2), collapse_padding=True)
    for side in grid.sides:
        table.add_column(justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in grid.rows:
        table.add_row(*map(_text, row))
    return table

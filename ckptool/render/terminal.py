"""Pages drawn on a terminal with Rich, in colour and wrapped; ``page.py`` draws into pipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from ckptool.render.encodings import fitted
from ckptool.render.outputs import page_of
from ckptool.render.page import GAP, Grid, Line, Page, draw, line
from ckptool.render.text import unshortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 10_000  # nothing is wrapped in a pipe: grep needs whole lines

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


def show(
    reports: Sequence[Any], stream: IO[str], color: str = "auto", output: str = "text"
) -> None:
    """Print the page of one or more reports; ``color`` is auto, always or never."""
    whole = not stream.isatty()
    with unshortened(whole=whole):
        page = fitted(page_of(reports, output), stream)
        if whole and color != "always":
            draw(page, stream)  # without the import of Rich, which takes 25 ms
        else:
            _draw(page, stream, color)


def _draw(page: Page, stream: IO[str], color: str) -> None:
    console = console_for(stream, color)
    with console.capture() as captured:
        for block in page:
            if isinstance(block, Line):
                console.print(_text(block), soft_wrap=not block.wraps)
            else:
                _print_grid(block, console)
    # Rich pads every cell of a column; blanks at the ends of lines would be copied along.
    stream.writelines(f"{line.rstrip()}\n" for line in captured.get().rstrip("\n").split("\n"))


def console_for(stream: IO[str], color: str) -> Console:
    """Return a console on ``stream``."""
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


def _print_grid(grid: Grid, console: Console) -> None:
    left_out = _too_wide(grid, console.width) if grid.optional else ()
    kept = [i for i in range(len(grid.sides)) if i not in left_out]
    console.print(_table(grid, kept))
    if left_out:
        names = ", ".join(grid.rows[0][i].text for i in left_out)
        console.print(_text(line((f"not shown, for want of room: {names}", "quiet"))))


def _too_wide(grid: Grid, width: int) -> tuple[int, ...]:
    """Return the optional columns that do not fit, counted from the last one, in their order."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(row[i].text) for row in grid.rows) + len(GAP) for i in range(len(grid.sides))
    ]
    over = sum(widths) - len(GAP) - width
    left_out = []
    for i in reversed(grid.optional):
        if over > 0:
            over -= widths[i]
            left_out.append(i)
    return tuple(reversed(left_out))


def _table(grid: Grid, kept: Sequence[int]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2), collapse_padding=True)
    for i in kept:
        table.add_column(justify=grid.sides[i], overflow="fold")  # type: ignore[arg-type]
    for row in grid.rows:
        table.add_row(*(_text(row[i]) for i in kept))
    return table

"""Pages drawn on a terminal with Rich, in colour; ``layout.py`` fits them to its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from ckptool.render.encodings import fitted
from ckptool.render.layout import draw, laid_out
from ckptool.render.outputs import page_of
from ckptool.render.page import Line, Page
from ckptool.render.text import unshortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 10_000  # nothing is wrapped in a pipe: grep needs whole lines

# Colours by meaning: of the 256 of terminals those between dark and light, which can be read on
# black and on white. What the first 16 are is set by themes: yellow may be unreadable on white,
# blue on black, and "dim" on both.
STYLES = {
    "title": "bold",
    "label": "color(244)",  # grey
    "name": "color(31)",  # cyan
    "good": "bold color(28)",  # green
    "warning": "color(136)",  # a dark yellow
    "error": "bold color(196)",  # red
    "info": "color(33)",  # blue
    "quiet": "color(244)",
}
# Where a terminal has only 16 colours: those that most themes leave readable, and else none.
FEW = {"title": "bold", "good": "bold", "warning": "bold magenta", "error": "bold red"}


def show(
    reports: Sequence[Any],
    stream: IO[str],
    color: str = "auto",
    output: str = "text",
    width: int | None = None,
) -> None:
    """Print the page of one or more reports; ``color`` is auto, always or never.

    A terminal has a width of its own; ``width`` is that of lines for pipes, by default whole ones.
    """
    whole = not stream.isatty()
    with unshortened(whole=whole):
        page = fitted(page_of(reports, output), stream)
        if whole and color != "always":
            draw(page, stream, width)  # without the import of Rich, which takes 25 ms
        else:
            _draw(page, stream, color, width)


def _draw(page: Page, stream: IO[str], color: str, width: int | None) -> None:
    console = console_for(stream, color)
    width = console.width if stream.isatty() else width
    styles = FEW if console.color_system == "standard" else STYLES
    with console.capture() as captured:
        for each in laid_out(page, width):
            console.print(_text(each, styles), soft_wrap=True)
    stream.write(captured.get())


def console_for(stream: IO[str], color: str) -> Console:
    """Return a console on ``stream``."""
    from rich.console import Console

    forced = {"always": True, "never": False}.get(color)
    return Console(
        file=stream,
        force_terminal=forced,
        color_system="256" if forced else "auto",  # what logs of jobs show, without a TERM
        no_color=True if color == "never" else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
        width=None if stream.isatty() else PIPE_WIDTH,
    )


def _text(line: Line, styles: Mapping[str, str]) -> Text:
    from rich.text import Text

    drawn = Text(no_wrap=True)
    for content, meaning in line.pieces:
        drawn.append(content, style=styles.get(meaning, ""))
    return drawn

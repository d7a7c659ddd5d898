"""Pictures of commands on a terminal, as SVG: made from what a terminal of that width was sent."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.text import Text

from helpers.terminals import on_terminal

SVG_TEXT = "{http://www.w3.org/2000/svg}text"
WEB_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # a picture loads nothing


def picture(command: str, width: int) -> str:
    """Return the SVG of a command and its output, on a terminal of ``width`` columns."""
    console = Console(record=True, width=width, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(_screen(command, width)), soft_wrap=True)
    svg = console.export_svg(title=command, unique_id="ckptool")
    return WEB_FONTS.sub("", svg)


def _screen(command: str, width: int) -> str:
    shown = on_terminal(*command.split()[1:], width=width, env={"COLORTERM": "truecolor"})
    return f"\x1b[1m$ {command}\x1b[0m\n{shown}"


def texts(svg: str) -> list[str]:
    """Return the texts of a picture, in their order."""
    root = ET.fromstring(svg)
    return [(each.text or "").replace("\xa0", " ") for each in root.iter(SVG_TEXT)]

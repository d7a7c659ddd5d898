"""The options of ``ckptool layouts``."""

from __future__ import annotations

from ckptool.cli.options import (
    ColorOption,
    JsonOption,
)
from ckptool.cli.output import answer, house_layouts
from ckptool.layouts import LAYOUTS
from ckptool.reports import LayoutsReport


def command(json: JsonOption = False, color: ColorOption = "auto") -> None:
    """List where frameworks are known to keep averaged weights."""
    answer(LayoutsReport((*house_layouts(), *LAYOUTS)), json=json, color=color)

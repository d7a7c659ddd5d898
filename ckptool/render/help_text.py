"""The text of ``--help``: the usage, then the options in panels, as tables without rules."""

from __future__ import annotations

from collections.abc import Sequence

from ckptool.render.page import Grid, Page, line
from ckptool.reports.help import HelpReport


def show_help(reports: Sequence[HelpReport]) -> Page:
    """Yield the page of one help."""
    for report in reports:
        yield line(("Usage: ", "label"), report.usage)
        for paragraph in report.about:
            yield line("")
            yield line(paragraph)
        for title, entries in report.panels:
            grid = Grid("left", "text", title=title)
            for entry in entries:
                value = (f" {entry.value}" if entry.value else "", "quiet")
                grid.add_row(line("  ", (entry.name, "info"), value), entry.text)
            yield grid
        yield line("")
        yield line(("Example: ", "label"), report.example)

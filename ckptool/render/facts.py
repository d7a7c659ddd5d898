"""Titled blocks of labels and values, which the pages of several reports are made of."""

from __future__ import annotations

from collections.abc import Iterable

from ckptool.render import text as words
from ckptool.render.page import Grid, Line, line
from ckptool.reports.base import Finding, MainSlot

TOP = "(root)"  # shown for the empty key path, that of the whole


def file_kind(format_name: str) -> str:
    """Return the name of a format for people."""
    from ckptool.formats import title_of  # noqa: PLC0415 - slow where no file was opened

    return title_of(format_name)


Fact = tuple[str | Line, str | Line]


def facts(title: str, lines: Iterable[Fact]) -> Grid:
    """Return a titled block of labels and values."""
    grid = Grid("left", "text", title=title)
    for label, content in lines:
        grid.add_row(line((f"  {label}", "label")) if isinstance(label, str) else label, content)
    return grid


def short(name: object) -> str:
    """Return a name from a file, cut to 60 characters."""
    return words.printable(name, 60)


def place(address: str | None) -> str:
    """Return a key path as it is shown."""
    return words.printable(address or "") or TOP


def finding_row(finding: Finding) -> Fact:
    """Return a finding as a label and a value."""
    at = words.printable(finding.address)
    label = line("  ", (finding.rule, finding.severity))
    message = words.printable(finding.message, 400)
    return label, line(
        (f"{finding.severity}: ", finding.severity), f"{at}: " if at else "", message
    )


MAIN_SLOT = {
    MainSlot.RAW: "the model's state dict holds the raw weights",
    MainSlot.AVERAGED: "the model's state dict already holds the EMA weights",
    MainSlot.UNKNOWN: "this file does not show whether the model's state dict holds EMA weights",
}
HOLDS_MEAN = "the model's state dict already holds the averaged weights"  # SWA, or a mean of files


def slot_told(slot: MainSlot, kind: str | None) -> str:
    """Return what the model's state dict holds; ``kind`` is that of the averaged weights."""
    return HOLDS_MEAN if (slot, kind) == (MainSlot.AVERAGED, "swa") else MAIN_SLOT[slot]

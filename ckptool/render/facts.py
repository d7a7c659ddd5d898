"""Titled blocks of labels and values, which the pages of several reports are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptool.render import text as words
from ckptool.render.page import Grid, Line, line
from ckptool.reports.base import Finding, MainSlot, SameReport, SnapshotReport

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


def unchanged(same: SameReport) -> str:
    """Return ``5 are the same as the raw weights: bn.running_mean, …``."""
    names = f": {words.some(same.names)}" if same.names else ""
    return f"{same.same:,} {'is' if same.same == 1 else 'are'} the same as the raw weights{names}"


def folder_of(path: str) -> str:
    """Return the directory of a file; a path would take a slash away from a URL."""
    return path.rpartition("/")[0] if "://" in path else str(Path(path).parent)


def post_hoc(snapshots: Sequence[SnapshotReport], folder: str) -> str:
    """Return the relative widths of snapshots, and the command that makes another one."""
    widths = sorted({each.sigma_rel for each in snapshots if each.sigma_rel is not None})
    tracks = {each.track for each in snapshots if each.sigma_rel is None}
    parts = [f"sigma_rel {', '.join(f'{width:g}' for width in widths)}"] if widths else []
    if tracks:
        parts.append(f"{words.plural(len(tracks), 'track')} whose sigma_rel is not stored")
    typed = " --widths W,W" if tracks else ""
    from shlex import quote  # noqa: PLC0415 - for few runs

    command = f"ckptool average {quote(folder)}{typed} --sigma-rel X -o OUT"
    shown = f"{' and '.join(parts)}; other widths: {command}"
    return words.printable(shown, len(shown))


MAIN_SLOT = {
    MainSlot.RAW: "the model's state dict holds the raw weights",
    MainSlot.AVERAGED: "the model's state dict already holds the EMA weights",
    MainSlot.UNKNOWN: "this file does not show whether the model's state dict holds EMA weights",
}
HOLDS_MEAN = "the model's state dict already holds the averaged weights"  # SWA, or a mean of files


def is_mean(note: Mapping[str, Any] | None) -> bool:
    """Return whether ckptool's note says that ``average`` wrote the model's state dict."""
    return note is not None and note["command"] == "average"


def slot_told(slot: MainSlot, kind: str | None) -> str:
    """Return what the model's state dict holds; ``kind`` is that of the averaged weights."""
    return HOLDS_MEAN if (slot, kind) == (MainSlot.AVERAGED, "swa") else MAIN_SLOT[slot]

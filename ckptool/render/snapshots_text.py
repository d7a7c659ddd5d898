"""The text about snapshots of EMAs: the widths that there are, and the command for others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from ckptool.render import text as words
from ckptool.reports.base import SnapshotReport


def post_hoc(snapshots: Sequence[SnapshotReport], folder: Path) -> str:
    """Return the relative widths of snapshots, and the command that makes another one."""
    widths = sorted({each.sigma_rel for each in snapshots if each.sigma_rel is not None})
    tracks = {each.track for each in snapshots if each.sigma_rel is None}
    parts = [f"sigma_rel {', '.join(f'{width:g}' for width in widths)}"] if widths else []
    if tracks:
        parts.append(f"{words.plural(len(tracks), 'track')} whose sigma_rel is not stored")
    typed = " --widths W,W" if tracks else ""
    command = f"ckptool average {quote(str(folder))}{typed} --sigma-rel X -o OUT"
    shown = f"{' and '.join(parts)}; other widths: {command}"
    return words.printable(shown, len(shown))

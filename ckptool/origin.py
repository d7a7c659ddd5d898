"""The record of provenance that a command writes into its output."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ckptool import __version__
from ckptool.candidates import Candidate, EmaLocation, table_address
from ckptool.provenance import Provenance


def origin(
    command: str,
    path: Path,
    location: EmaLocation,
    candidate: Candidate | None,
    made_at: float | None = None,
) -> Provenance:
    """What a command does with what was located; ``made_at`` in seconds since 1970, else now."""
    when = datetime.now(UTC) if made_at is None else datetime.fromtimestamp(made_at, UTC)
    return Provenance(
        version=__version__,
        command=command,
        source=path.name,
        ema=_place(candidate) if candidate else "",
        model=table_address(location.model) if location.model else None,
        layout=candidate.layout.name if candidate and candidate.layout else None,
        time=when.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _place(candidate: Candidate) -> str:
    """The address of the averages, behind the name of the file if it is another one."""
    return f"{candidate.file.name}#{candidate.address}" if candidate.file else candidate.address

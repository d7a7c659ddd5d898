"""The record of provenance that a command writes into its output."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ckptool import __version__
from ckptool.ema.candidates import CHOSEN, Candidate, EmaLocation, table_address
from ckptool.formats.provenance import Provenance


def origin(
    command: str,
    path: Path,
    location: EmaLocation,
    candidate: Candidate | None,
    made_at: float | None = None,
) -> Provenance:
    """Return the record of a command; ``made_at`` is in seconds since 1970, by default now."""
    when = datetime.now(UTC) if made_at is None else datetime.fromtimestamp(made_at, UTC)
    return Provenance(
        version=__version__,
        command=command,
        source=path.name,
        ema=_place(candidate) if candidate else "",
        model=table_address(location.model) if location.model else None,
        layout=candidate.layout.name if candidate and candidate.layout else None,
        time=when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        kind=kind_taken(location),
    )


def kind_taken(location: EmaLocation) -> str:
    """Return the kind of weights taken: of EMA, raw, or "table" where nothing names either."""
    chosen = location.selected
    if chosen is not None and chosen.kind == CHOSEN and chosen.alignment is None:
        return "table"
    return chosen.kind if chosen is not None else "ema"


def _place(candidate: Candidate) -> str:
    """Return the key path of the EMA weights, after the name of a file if it is another one."""
    return f"{candidate.file.name}#{candidate.address}" if candidate.file else candidate.address

"""The record of provenance that a command writes into its output."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ckptool import __version__
from ckptool.ema.candidates import CHOSEN, RAW_KIND, Candidate, EmaLocation, table_address
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import BETWEEN, AverageNote, Provenance, read_provenance
from ckptool.reports.base import MainSlot


def origin(
    command: str,
    path: Path,
    location: EmaLocation,
    candidate: Candidate | None,
    made_at: float | None = None,
) -> Provenance:
    """Return the record of a command; ``made_at`` is in seconds since 1970, by default now."""
    place = _place(candidate) if candidate else ""
    return _record(command, path.name, place, kind_taken(location), made_at)._replace(
        model=table_address(location.model) if location.model else None,
        layout=candidate.layout.name if candidate and candidate.layout else None,
    )


def converted_from(path: Path, address: str, kind: str, made_at: float | None = None) -> Provenance:
    """Return the record of ``convert``: the state dict at a key path, and its kind."""
    return _record("convert", path.name, address, kind, made_at)


def averaged_from(
    paths: Sequence[Path], kind: str, average: AverageNote, made_at: float | None = None
) -> Provenance:
    """Return the record of ``average``: usually a stochastic weight average (``swa``)."""
    source = BETWEEN.join(path.name for path in paths)
    return _record("average", source, "", kind, made_at)._replace(average=average)


def _record(command: str, source: str, ema: str, kind: str, made_at: float | None) -> Provenance:
    when = datetime.now(UTC) if made_at is None else datetime.fromtimestamp(made_at, UTC)
    time = when.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Provenance(__version__, command, source, ema, None, None, time, kind)


def kind_at(location: EmaLocation, address: str, checkpoint: Checkpoint) -> str:
    """Return the kind of the weights at a key path, as far as the search tells; else "table"."""
    kinds = {
        candidate.address: candidate.kind
        for candidate in location.candidates
        if candidate.file is None and candidate.kind != CHOSEN
    }
    if address in kinds:
        return kinds[address]
    if location.model is None or table_address(location.model) != address:
        return "table"
    note = read_provenance(checkpoint.metadata)
    slot = location.main_slot
    if slot is MainSlot.AVERAGED:
        return note.kind_of_average if note else "ema"
    return RAW_KIND if slot is MainSlot.RAW else "table"


def kind_taken(location: EmaLocation) -> str:
    """Return the kind of weights taken: of EMA, raw, or "table" where nothing names either."""
    chosen = location.selected
    if chosen is not None and chosen.kind == CHOSEN and chosen.alignment is None:
        return "table"
    return chosen.kind if chosen is not None else "ema"


def _place(candidate: Candidate) -> str:
    """Return the key path of the EMA weights, after the name of a file if it is another one."""
    return f"{candidate.file.name}#{candidate.address}" if candidate.file else candidate.address

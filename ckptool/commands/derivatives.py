"""Files that ckptool made of other checkpoints in the directory of a run: no checkpoints of it.

``extract-ema epoch_5.ckpt`` writes ``epoch_5.ema.safetensors`` beside its source by default. Each
such file says in a note which command made it (``formats/provenance.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import BETWEEN, read_provenance

Origin = tuple[str, str]  # command, and the names of the files that it took


def origin_of(checkpoint: Checkpoint) -> Origin | None:
    """Return the origin of a checkpoint that ckptool made; None for all others."""
    note = read_provenance(checkpoint.metadata)
    return (note.command, note.source) if note is not None else None


def told(origin: Origin) -> str:
    """Return the origin in words."""
    return f"ckptool {origin[0]} made it of {origin[1]}"


def derivatives(files: Iterable[tuple[str, Origin | None]]) -> Mapping[str, str]:
    """Return the files of one directory that are none of a run's own checkpoints, and why.

    A file that was made of others counts if none of them is there any more: a checkpoint that was
    promoted in place and renamed is the only one of its step. A checkpoint that was promoted in
    place is one of the run. A directory of nothing but such files is a run by itself, of which none
    is left out: somebody has converted all checkpoints of a run.
    """
    origins = dict(files)
    names = {Path(path).name for path in origins}
    made = {
        path: told(origin)
        for path, origin in origins.items()
        if origin is not None
        and origin[1] != Path(path).name
        and not names.isdisjoint((origin[1], *origin[1].split(BETWEEN)))
    }
    return made if len(made) < len(origins) else {}

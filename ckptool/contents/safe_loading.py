"""The answer of ``torch.load(weights_only=True)``, the default since torch 2.6, for one file.

``formats/pickles/weights_only.py`` has the names and the steps that the loader allows; here they
are asked of an open checkpoint, the cheap questions first.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.weights_only import (
    LAST_PROTOCOL,
    Refusal,
    first_refusal,
    pickle_protocol,
    refused,
)
from ckptool.records import record

MAX_PICKLE = 1 << 30  # bytes of a pickle that is followed a second time
NESTED = "bytes inside"  # pickles within pickles: a loader returns them as bytes


class Load(StrEnum):
    """Outcome of the load, or the ground on which it is refused."""

    TAKEN = "taken"
    NOT_ASKED = "not-asked"  # torch.load does not read files of this format so
    UNKNOWN = "unknown"  # a pickle is too large to be followed
    ARCHIVE = "archive"  # another function of torch reads it
    PROTOCOL = "protocol"
    NAMES = "names"
    STEP = "step"


@record(slots=True)
class SafeLoad:
    """Answer for one file."""

    load: Load
    why: str = ""  # of a refusal, behind "torch.load(weights_only=True)"; of an unknown answer
    names: tuple[str, ...] = ()  # that are not allowed by default

    @property
    def is_refused(self) -> bool:
        """Whether the loader refuses the file."""
        return self.load not in (Load.TAKEN, Load.NOT_ASKED, Load.UNKNOWN)


def safe_load(checkpoint: Checkpoint, limit: int = MAX_PICKLE) -> SafeLoad:
    """Return the loader's answer.

    Args:
        checkpoint: one file, not a directory of several.
        limit: the bytes up to which a pickle is followed.
    """
    kind = checkpoint.format
    if kind.loaded_by:
        return SafeLoad(Load.ARCHIVE, f"does not take {kind.name} archives")
    if not kind.is_weights_only:
        return SafeLoad(Load.NOT_ASKED, f"torch.load does not read {kind.name} files in this way")
    of_file = (entry for entry in checkpoint.globals_named if entry.ref.module)
    names = tuple(refused(e.ref for e in of_file if not e.pickle.startswith(NESTED)))
    protocol = pickle_protocol(checkpoint)
    if protocol > LAST_PROTOCOL:
        why = f"does not know the opcodes of protocol {protocol}, which the pickle has"
        return SafeLoad(Load.PROTOCOL, why, names)
    if names:
        count = "1 name" if len(names) == 1 else f"{len(names)} names"
        return SafeLoad(Load.NAMES, f"refuses {count}", names)
    refusal = refused_step(checkpoint, limit=limit)
    if isinstance(refusal, Refusal):
        why = f"refuses {refusal.what} (at byte {refusal.at} of the pickle)"
        return SafeLoad(Load.STEP, why)
    return SafeLoad(Load.TAKEN) if refusal is None else SafeLoad(Load.UNKNOWN, refusal)


def refused_step(
    checkpoint: Checkpoint, more: Sequence[str] = (), limit: int = MAX_PICKLE
) -> Refusal | str | None:
    """Return the first step that torch's safe loader refuses; a reason if a pickle is too large.

    All names must be allowed: by torch, or by the user if they are in ``more``.
    """
    for extent in checkpoint.pickles:
        if extent.is_plain and not more:
            continue
        if extent.end - extent.begin > limit:
            return f"a pickle of more than {limit:,} bytes"
        refusal = first_refusal(extent.read(extent.begin, extent.end - extent.begin), more)
        if refusal is not None:
            return refusal
    return None

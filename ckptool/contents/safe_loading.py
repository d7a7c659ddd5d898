"""The answer of ``torch.load(weights_only=True)``, the default since torch 2.6, for one file.

``formats/pickles/weights_only.py`` has the names and the steps that the loader allows; here they
are asked of an open checkpoint, the cheap questions first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.plain_names import beyond_plain
from ckptool.reports.inspect import Load, SafeLoadReport
from ckptool.tree.nodes import GlobalRef

if TYPE_CHECKING:
    from ckptool.formats.pickles.weights_only import Refusal

PROTO = 0x80  # the opcode; the version follows
LAST_PROTOCOL = 3  # the loader does not know the frames of protocol 4
MAX_PICKLE = 1 << 30  # bytes of a pickle that is followed a second time
NESTED = "bytes inside"  # pickles within pickles: a loader returns them as bytes


def safe_load(checkpoint: Checkpoint, limit: int = MAX_PICKLE) -> SafeLoadReport:
    """Return the loader's answer.

    Args:
        checkpoint: one file, not a directory of several.
        limit: the bytes up to which a pickle is followed.
    """
    kind = checkpoint.format
    if kind.loaded_by:
        return SafeLoadReport(Load.ARCHIVE, f"does not take {kind.name} archives")
    if not kind.is_weights_only:
        return SafeLoadReport(
            Load.NOT_ASKED, f"torch.load does not read {kind.name} files in this way"
        )
    of_file = (entry for entry in checkpoint.globals_named if entry.ref.module)
    names = tuple(_refused(e.ref for e in of_file if not e.pickle.startswith(NESTED)))
    protocol = _protocol(checkpoint)
    if protocol > LAST_PROTOCOL:
        why = f"does not know the opcodes of protocol {protocol}, which the pickle has"
        return SafeLoadReport(Load.PROTOCOL, why, names)
    if names:
        count = "1 name" if len(names) == 1 else f"{len(names)} names"
        return SafeLoadReport(Load.NAMES, f"refuses {count}", names)
    return _told(refused_step(checkpoint, limit=limit))


def _told(refusal: Refusal | str | None) -> SafeLoadReport:
    """Return the answer to an allowed pickle, by the first step that is refused."""
    if refusal is None:
        return SafeLoadReport(Load.TAKEN)
    if isinstance(refusal, str):
        return SafeLoadReport(Load.UNKNOWN, refusal)
    why = f"refuses {refusal.what} (at byte {refusal.at} of the pickle)"
    return SafeLoadReport(Load.STEP, why)


def _refused(refs: Iterable[GlobalRef]) -> list[str]:
    """Return those names that torch's safe loader refuses; it takes the plain ones."""
    looked_up = beyond_plain(refs)
    if not looked_up:
        return []
    from ckptool.formats.pickles.weights_only import refused  # noqa: PLC0415 - for few files

    return refused(looked_up)


def _protocol(checkpoint: Checkpoint) -> int:
    """Return the protocol of the object's pickle; 0 for 0 and 1, which it does not state."""
    pickle = checkpoint.pickles[0]  # the pickles of the older container have one protocol
    first = pickle.read(pickle.begin, 2)
    return first[1] if first[0] == PROTO else 0


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
        from ckptool.formats.pickles.weights_only import first_refusal  # noqa: PLC0415 - as above

        refusal = first_refusal(extent.read(extent.begin, extent.end - extent.begin), more)
        if refusal is not None:
            return refusal
    return None

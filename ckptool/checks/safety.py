"""CK2: what unpickling would do, and whether torch's safe loader takes the file as it is.

Nothing is looked up: names are compared with tables, ``trust.py`` for what they can do and
``weights_only.py`` for what torch allows.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.container import named
from ckptool.checks.weights_only import LAST_PROTOCOL, allowing_line, refused
from ckptool.formats.base import Checkpoint, NamedGlobal
from ckptool.formats.protocols import pickle_protocol
from ckptool.rules import finding
from ckptool.tree import Opaque, walk
from ckptool.trust import DANGEROUS, UNKNOWN, trust_of
from ckptool.trust_findings import trust_findings

TORCH_FORMATS = frozenset({"torch-zip", "torch-legacy"})
NESTED = "bytes inside"  # pickles within pickles: a loader hands them out unread


def _has_pickles(subject: Subject) -> str | None:
    if subject.checkpoint.format_name == "safetensors":
        return "safetensors files hold no pickle"
    return None


def _dangerous(subject: Subject) -> Verdicts:
    yield from trust_findings(subject.checkpoint)


def _unknown(subject: Subject) -> Verdicts:
    names = sorted({
        entry.ref.qualname
        for entry in subject.checkpoint.globals_named
        if trust_of(entry) == UNKNOWN
    })  # fmt: skip
    if names:
        message = f"{len(names)} classes that ckptool does not know: {named(names)}"
        yield finding("CK203", "", message)


# ----------------------------------------------------------------------------------- weights_only


def _weights_only(subject: Subject) -> Verdicts:
    checkpoint = subject.checkpoint
    if checkpoint.format_name not in TORCH_FORMATS:
        reason = f"torch.load does not read {checkpoint.format_name} files in this way"
        yield NotChecked("CK202", reason, is_absent=checkpoint.format_name == "safetensors")
        return
    protocol = pickle_protocol(checkpoint)
    if protocol > LAST_PROTOCOL:
        message = f"the pickle is of protocol {protocol}, of which it does not know the opcodes"
        yield finding("CK202", "", message, "save it again with torch.save, which uses protocol 2")
        return
    outer = [entry for entry in checkpoint.globals_named if not entry.pickle.startswith(NESTED)]
    names = refused(entry.ref for entry in outer)
    if names:
        message = f"{len(names)} names are not allowed by default: {named(names)}"
        yield finding("CK202", "", message, _line(outer, names, checkpoint))
    elif protocol != 2:
        yield NotChecked("CK202", f"the pickle is of protocol {protocol}")


def _line(entries: list[NamedGlobal], names: list[str], checkpoint: Checkpoint) -> str | None:
    """The line that allows the names, unless allowing them would be the fault, or no help."""
    if any(trust_of(entry) == DANGEROUS for entry in entries):
        return "do not allow them: see CK201"
    filled = next((o.qualname for o in _objects(checkpoint) if o.items or o.elements), None)
    line = None if filled else allowing_line(names)
    return line or "no allowing helps with these: save plain dicts, lists and numbers instead"


def _objects(checkpoint: Checkpoint) -> Iterator[Opaque]:
    return (visit.node for visit in walk(checkpoint.tree) if isinstance(visit.node, Opaque))


CHECKS = (
    Check(("CK201",), _dangerous, (_has_pickles,)),
    Check(("CK202",), _weights_only),
    Check(("CK203",), _unknown, (_has_pickles,)),
)

"""CK2: checks of what unpickling would do, and that torch's safe loader takes the file.

Nothing is imported: names are compared with tables. ``formats/pickles/trust.py`` lists what names
can do, and ``weights_only.py`` the names and steps that torch allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.container import found_beside, not_looked_at, noted
from ckptool.contents.dangers import built_by_calls, trust_findings, unknown_classes
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.dcp import SHARD
from ckptool.formats.pickles.trust import DANGEROUS, trust_of
from ckptool.formats.pickles.vetted import PLAIN_DATA
from ckptool.formats.pickles.weights_only import (
    LAST_PROTOCOL,
    Refusal,
    allowing_line,
    first_refusal,
    pickle_protocol,
    refused,
)
from ckptool.formats.sharded import INDEX
from ckptool.reports.base import Finding
from ckptool.reports.rules import finding
from ckptool.tree.describing import named

MAX_PICKLE = 1 << 30  # bytes of a pickle that is followed a second time
NESTED = "bytes inside"  # pickles within pickles: a loader returns them as bytes


def _has_pickles(subject: Subject) -> str | None:
    kind = subject.checkpoint.format
    has_pickles = any(
        (
            kind.is_pickle,
            subject.checkpoint.globals_named,  # by another reading
            subject.once(found_beside),
            not_looked_at(subject),
        )
    )
    return None if has_pickles else f"{kind.name} files hold no pickle"


def _dangerous(subject: Subject) -> Verdicts:
    yield from trust_findings(subject.checkpoint)
    yield from _beside(subject, "CK201")


def _built_by_calls(subject: Subject) -> Verdicts:
    yield from built_by_calls(subject.checkpoint)
    yield from _beside(subject, "CK210")


def _counted(names: Sequence[str]) -> str:
    return "1 name" if len(names) == 1 else f"{len(names)} names"


def _unknown(subject: Subject) -> Verdicts:
    yield from unknown_classes(subject.checkpoint)
    yield from _beside(subject, "CK203")


def _archive_code(subject: Subject) -> Verdicts:
    yield from noted(subject.checkpoint, {"CK204"})
    yield from _beside(subject, "CK204")


def _beside(subject: Subject, rule: str) -> Verdicts:
    """Yield a rule's findings in other files, which a load of the whole directory may load too."""
    yield from (found for found in subject.once(found_beside) if found.rule == rule)
    if left := not_looked_at(subject):
        yield NotChecked(rule, f"not everything in the directory was looked at: {left}")


# ----------------------------------------------------------------------------------- weights_only


def _weights_only(subject: Subject) -> Verdicts:
    if not subject.checkpoint.format.is_of_parts:
        yield from _of_file(subject.checkpoint)
        return
    asked = False
    said: dict[tuple[str, str | None], list[tuple[str, Finding]]] = {}  # by message and remedy
    for path in (Path(source.name) for source in subject.checkpoint.reader.opened):
        if path.name.endswith((INDEX, SHARD)):  # no checkpoint by itself
            continue
        with open_checkpoint(path) as part:
            if part.format.is_weights_only:
                asked = True
                for each in _of_file(part):
                    if isinstance(each, NotChecked):
                        yield each._replace(reason=f"{path.name}: {each.reason}")
                    else:
                        said.setdefault((each.message, each.remedy), []).append((path.name, each))
    yield from map(_of_parts, said.values())
    if not asked:
        yield NotChecked("CK202", "no part of it is a file of torch.save", is_absent=True)


def _of_parts(said: Sequence[tuple[str, Finding]]) -> Finding:
    """Return one finding for files of which the same is said, such as those of all ranks."""
    (name, first), *others = said
    address = f"{name}: {first.address}" if first.address else name
    if not others:
        return replace(first, address=address)
    message = f"{first.message}; the same in {named([other for other, _ in others])}"
    return replace(first, address=address, message=message)


def _of_file(checkpoint: Checkpoint) -> Verdicts:
    kind = checkpoint.format
    if kind.loaded_by:
        message = f"it does not take {kind.name} archives"
        yield finding("CK202", "", message, f"load it with {kind.loaded_by}(path)")
        return
    if not kind.is_weights_only:
        reason = f"torch.load does not read {kind.name} files in this way"
        yield NotChecked("CK202", reason, is_absent=not kind.is_pickle)
        return
    names_of_file = (entry for entry in checkpoint.globals_named if entry.ref.module)
    outer = [entry for entry in names_of_file if not entry.pickle.startswith(NESTED)]
    names = refused(entry.ref for entry in outer)
    protocol = pickle_protocol(checkpoint)
    if protocol > LAST_PROTOCOL:
        message = f"the pickle is of protocol {protocol}, of which it does not know the opcodes"
        yield finding("CK202", "", message, _why_not(checkpoint, names) or RESAVE)
        return
    if names:
        message = f"torch.load(weights_only=True) refuses {_counted(names)}: {named(names)}"
        yield finding("CK202", "", message, _line(names, checkpoint))
        return
    refusal = _first_refusal(checkpoint)
    if isinstance(refusal, Refusal):
        message = f"it refuses {refusal.what} (at byte {refusal.at} of the pickle)"
        yield finding("CK202", "", message, "save it again with torch.save")
    elif refusal is not None:
        yield NotChecked("CK202", refusal)


def _first_refusal(checkpoint: Checkpoint, more: Sequence[str] = ()) -> Refusal | str | None:
    """Return the first step that torch's safe loader refuses; a reason if a pickle is too large.

    All names must be allowed: by torch, or by the user if they are in ``more``.
    """
    for extent in checkpoint.pickles:
        if extent.is_plain and not more:
            continue
        if extent.end - extent.begin > MAX_PICKLE:
            return f"a pickle of more than {MAX_PICKLE:,} bytes"
        refusal = first_refusal(extent.read(extent.begin, extent.end - extent.begin), more)
        if refusal is not None:
            return refusal
    return None


RESAVE = "save it again with torch.save, which uses protocol 2"
CONVERT = (
    "ckptool convert --safe makes plain data of it or names what cannot be, and ckptool convert "
    "'FILE#@model' takes the weights alone"
)


def _why_not(checkpoint: Checkpoint, names: Sequence[str]) -> str | None:
    """Return what to do instead of a load in which a call or a class of the file could act.

    A line that allows names is pasted and run, and then serves for every other file in the process.
    So each name has to make plain data of any arguments; None if all of them do.
    """
    if any(trust_of(entry) == DANGEROUS for entry in checkpoint.globals_named):
        return "do not load it and allow no name in it: see CK201"
    acting = [name for name in names if name not in PLAIN_DATA]
    return f"do not allow {named(acting)}; {CONVERT}" if acting else None


def _line(names: list[str], checkpoint: Checkpoint) -> str:
    """Return the line that allows the names, or advice if that is dangerous or no help."""
    advice = _why_not(checkpoint, names)
    if advice is not None:
        return advice
    refusal = _first_refusal(checkpoint, names)
    if refusal is None and (line := allowing_line(names)):
        return line
    why = f" (it would refuse {refusal.what})" if isinstance(refusal, Refusal) else ""
    return f"no allowing helps with these{why}: save plain dicts, lists and numbers instead"


CHECKS = (
    Check(("CK201",), _dangerous, (_has_pickles,)),
    Check(("CK202",), _weights_only),
    Check(("CK210",), _built_by_calls, (_has_pickles,)),
    Check(("CK203",), _unknown, (_has_pickles,)),
    Check(("CK204",), _archive_code, (_has_pickles,)),
)

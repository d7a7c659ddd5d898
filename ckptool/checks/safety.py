"""CK2: checks of what unpickling would do, and that torch's safe loader takes the file.

Nothing is imported: names are compared with tables. ``formats/pickles/trust.py`` lists what names
can do, and ``weights_only.py`` the names and steps that torch allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, once
from ckptool.checks.container import TRUST, found_beside, not_looked_at
from ckptool.contents.safe_loading import refused_step, safe_load
from ckptool.errors import UnknownFormatError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import DANGEROUS, Checkpoint, NamedGlobal
from ckptool.formats.dcp import SHARD
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.vetted import PLAIN_DATA
from ckptool.formats.pickles.weights_only import Refusal, allowing_line
from ckptool.formats.sharded import INDEX
from ckptool.formats.torch_zip import names_in_arrays
from ckptool.formats.zips.checksums import is_one_archive
from ckptool.reports.base import Finding
from ckptool.reports.inspect import Load, SafeLoadReport
from ckptool.reports.rules import BYTES, finding
from ckptool.tree.describing import named


def _has_pickles(subject: Subject) -> str | None:
    kind = subject.checkpoint.format
    has_pickles = any(
        (
            kind.is_pickle,
            subject.checkpoint.globals_named,  # by another reading
            found_beside(subject),
            not_looked_at(subject),
        )
    )
    return None if has_pickles else f"{kind.name} files hold no pickle"


@once
def _with_arrays(subject: Subject) -> Checkpoint:
    """Return the checkpoint with the names in arrays among its records, if all bytes are read.

    On this machine they are known when it has been opened.
    """
    checkpoint = subject.checkpoint
    names: list[NamedGlobal] = []
    for file in checkpoint.reader.opened if BYTES in subject.reads else ():
        if not file.is_near and is_one_archive(file):
            begun = {each.offset for each in subject.scan.arrays if each.source is file}
            with suppress(UnknownFormatError):  # a zip of something else
                names += names_in_arrays(file, begun)
    if not names:
        return checkpoint
    return replace(checkpoint, globals_named=(*checkpoint.globals_named, *names))


def _when_loaded(rule: str) -> Check:
    """Return the check of a rule of ``TRUST``: whoever loads the directory may load other files."""

    def run(subject: Subject) -> Verdicts:
        yield from TRUST[rule](_with_arrays(subject))
        yield from (found for found in found_beside(subject) if found.rule == rule)
        if left := not_looked_at(subject):
            yield NotChecked(rule, f"not everything in the directory was looked at: {left}")

    return Check((rule,), run, (_has_pickles,))


def _weights_only(subject: Subject) -> Verdicts:
    if not subject.checkpoint.format.is_of_parts:
        yield from _of_file(subject.checkpoint)
        return
    asked = False
    said: dict[tuple[str, str | None], list[tuple[str, Finding]]] = {}  # by message and remedy
    for path in (source.place for source in subject.checkpoint.reader.opened):
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
    answer = safe_load(checkpoint)
    if answer.is_refused:
        named_ones = f": {named(answer.names)}" if answer.load is Load.NAMES else ""
        message = f"torch.load(weights_only=True) {answer.why}{named_ones}"
        yield finding("CK202", "", message, _remedy(answer, checkpoint))
    elif answer.load is not Load.TAKEN:
        is_absent = answer.load is Load.NOT_ASKED and not checkpoint.format.is_pickle
        yield NotChecked("CK202", answer.why, is_absent=is_absent)


def _remedy(answer: SafeLoadReport, checkpoint: Checkpoint) -> str:
    if answer.load is Load.ARCHIVE:
        return f"load it with {checkpoint.format.loaded_by}(path)"
    if answer.load is Load.PROTOCOL:
        return _why_not(checkpoint, answer.names) or RESAVE
    if answer.load is Load.NAMES:
        return _line(answer.names, checkpoint)
    return "save it again with torch.save"


RESAVE = "save it again with torch.save, which uses protocol 2"
CONVERT = (
    "ckptool convert --safe may make plain data of it, ckptool convert 'FILE#@model' takes the "
    "weights"
)


def _why_not(checkpoint: Checkpoint, names: Sequence[str]) -> str | None:
    """Return what to do instead of a load in which a call or a class of the file could act.

    A line that allows names is pasted and run, and then serves for every other file in the process.
    So each name has to make plain data of any arguments; None if all of them do.
    """
    if any(trust_of(entry) == DANGEROUS for entry in checkpoint.globals_named):
        return "do not load it and allow no name in it: see CK201"
    acting = [name for name in names if name not in PLAIN_DATA]
    return f"{CONVERT}; do not allow {named(acting)}" if acting else None


def _line(names: Sequence[str], checkpoint: Checkpoint) -> str:
    """Return the line that allows the names, or advice if that is dangerous or no help."""
    advice = _why_not(checkpoint, names)
    if advice is not None:
        return advice
    refusal = refused_step(checkpoint, names)
    if refusal is None and (line := allowing_line(names)):
        return line
    why = f" (it would refuse {refusal.what})" if isinstance(refusal, Refusal) else ""
    return f"add_safe_globals does not help{why}: save plain dicts, lists and numbers instead"


CHECKS = (
    _when_loaded("CK201"),
    Check(("CK202",), _weights_only),
    *map(_when_loaded, ("CK210", "CK203", "CK204")),
)

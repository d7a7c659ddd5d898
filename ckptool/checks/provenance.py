"""CK7: checks that the weights are those of another checkpoint, to the last bit.

The weights of a release are computed again from its source (``sources.py``, as ``extract-ema``
does) and compared in the release's own dtypes: EMA weights that were cast for a bfloat16 state dict
are compared after the same cast. The names may be the model's, the model's without wrapper prefixes
(``bare``), or those of the EMA weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, once
from ckptool.checks.sources import Original, Tensors
from ckptool.formats.provenance import read_provenance
from ckptool.records import NamedTuple
from ckptool.reports.rules import finding
from ckptool.reports.verify import ProofReport
from ckptool.tensors.blocks import equal_after_cast
from ckptool.tensors.volume import refuse_repetition
from ckptool.tree.describing import named

RULES = ("CK701", "CK702")


class Compared(NamedTuple):
    """The weights of a file beside those of its claimed source."""

    averages: Tensors  # the source's, under the names that fit best
    missing: list[str]  # names of the source that the file lacks or has with other shapes
    unexpected: list[str]  # names of the file that the source lacks
    differing: list[str]  # names whose values differ, after a cast to the file's dtypes
    of_models_buffers: bool = False  # some are the model's buffers, and not the source's own


@once
def _compared(subject: Subject) -> Compared | None:
    """Return the comparison; None without a source or without weights."""
    table, source = subject.location.weights, subject.against
    if source is None or table is None:
        return None
    ours = table.tensors
    averages = max(source.plans, key=lambda plan: len(plan.keys() & ours.keys()))
    fitting = [n for n in averages if n in ours and averages[n].shape == ours[n].shape]
    fit = frozenset(fitting)
    differing = _differing(subject, source, ours, averages, fitting)
    rest = _without_models_buffers(subject, source, ours, averages, differing)
    return Compared(
        averages,
        missing=[name for name in averages if name not in fit],
        unexpected=[name for name in table.entries if name not in averages],
        differing=rest,
        of_models_buffers=bool(differing) and not rest,
    )


def _is_that_average(subject: Subject) -> Verdicts:
    table, source, found = subject.location.weights, subject.against, _compared(subject)
    if source is None or table is None or found is None:
        reason = "no source to compare with: --against" if table else "the file holds no weights"
        yield from (NotChecked(rule, reason) for rule in RULES)
        return
    missing, unexpected, differing = found.missing, found.unexpected, found.differing
    fitting = len(found.averages) - len(missing)
    if missing or unexpected:
        message = "; ".join(_names(missing, unexpected, table.tensors))
        yield finding("CK702", (missing or unexpected)[0], message, _again(subject))
    if differing:
        what = f"{len(differing)} of {fitting} tensors differ: {named(differing)}"
        raw = _is_raw(subject, source, table.tensors, differing)
        changed = [*source.changed()]
        other = f"; {named(changed)}: not the file that was averaged" if changed else ""
        remedy = OF_RAW if raw else _again(subject)
        yield finding("CK701", differing[0], what + raw + other, remedy)
    elif not fitting:
        message = "no tensor of the source is in the file"
        yield finding("CK701", "", message, _again(subject))


def _names(missing: list[str], unexpected: list[str], ours: Tensors) -> Iterator[str]:
    """Yield what is wrong with the names, in words."""
    told = (
        ("in the source but not in the file", [name for name in missing if name not in ours]),
        ("in the file with another shape", [name for name in missing if name in ours]),
        ("in the file but not in the source", unexpected),
    )
    for where, names in told:
        if names:
            are = "tensor is" if len(names) == 1 else "tensors are"
            yield f"{len(names):,} {are} {where}: {named(names)}"


def proof(subject: Subject, source: str) -> ProofReport | None:
    """Return what a file was proven to be that passed; None if nothing was compared.

    ``source`` is the path of the source, for the report.
    """
    table, original, found = subject.location.weights, subject.against, _compared(subject)
    if original is None or table is None or found is None:
        return None
    pairs = [(table.tensors[name].dtype, ref.dtype) for name, ref in found.averages.items()]
    return ProofReport(
        path=source,
        address=original.address,
        kind=original.kind,
        tensors=len(pairs),
        casts=tuple(dict.fromkeys(ours.name for ours, theirs in pairs if ours is not theirs)),
        buffers="model" if found.of_models_buffers else "ema",
    )


OF_RAW = "--against SOURCE#@model compares with those; ckptool extract-ema SOURCE writes the EMA"
# Command that wrote a file, by its note -> how to make it again; without a note the rule says it.
AGAIN = {
    "extract-ema": "make the file again: ckptool extract-ema SOURCE",
    "average": "make the file again: ckptool average CHECKPOINTS, with the options that it had",
    "convert": "make the file again: ckptool convert SOURCE, with the options that it had",
    "promote-ema": "make the file again: ckptool promote-ema SOURCE -o OUT",
}


def _again(subject: Subject) -> str | None:
    """Return the remedy for a file that states which command wrote it."""
    note = read_provenance(subject.checkpoint.metadata)
    return AGAIN.get(note.command) if note is not None else None


def _without_models_buffers(
    subject: Subject, source: Original, ours: Tensors, averages: Tensors, differing: list[str]
) -> list[str]:
    """Compare with the model's buffers instead, if the names that differ are all such buffers."""
    for other in source.buffered if differing else ():
        of_model = [name for name in averages if other.get(name, averages[name]) != averages[name]]
        if other.keys() == averages.keys() and set(differing) <= set(of_model):
            return _differing(subject, source, ours, other, of_model)
    return differing


def _is_raw(subject: Subject, source: Original, ours: Tensors, differing: list[str]) -> str:
    """Return a note if these are the source's raw weights, the usual mistake; else ""."""
    known = [name for name in differing if name in source.raw]
    first, rest = known[:1], known[1:]  # one tensor usually decides
    is_raw = first and not any(
        _differing(subject, source, ours, source.raw, names) for names in (first, rest)
    )
    return "; they are its raw weights" if is_raw else ""


def _differing(
    subject: Subject, source: Original, ours: Tensors, theirs: Tensors, names: list[str]
) -> list[str]:
    """Return the names whose tensors differ after a cast of ``theirs`` to the file's dtype."""

    def is_equal(name: str) -> bool:
        one, other = ours[name], theirs[name]
        return one.shape == other.shape and equal_after_cast(source.reader, one, other)

    for refs in (ours, theirs):
        refuse_repetition(refs[name] for name in names)
    equal = subject.over(names, is_equal, lambda name: ours[name].nbytes)
    return [name for name, same in zip(names, equal, strict=True) if not same]


CHECKS = (Check(RULES, _is_that_average),)

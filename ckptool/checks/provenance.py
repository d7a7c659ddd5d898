"""CK7: checks that the weights are those of another checkpoint, to the last bit.

The weights of a release are computed again from its source (``sources.py``, as ``extract-ema``
does) and compared in the release's own dtypes: EMA weights that were cast for a bfloat16 state dict
are compared after the same cast. The names may be the model's, the model's without wrapper prefixes
(``bare``), or those of the EMA weights.
"""

from __future__ import annotations

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.sources import Original, Tensors
from ckptool.formats.provenance import read_provenance
from ckptool.reports.rules import finding
from ckptool.tensors.blocks import equal_after_cast
from ckptool.tensors.volume import refuse_repetition
from ckptool.tree.describing import named

RULES = ("CK701", "CK702")


def _is_that_average(subject: Subject) -> Verdicts:
    table, source = subject.location.weights, subject.against
    if source is None or table is None:
        reason = "no source to compare with: --against" if table else "the file holds no weights"
        yield from (NotChecked(rule, reason) for rule in RULES)
        return
    ours = table.tensors
    averages = max(source.plans, key=lambda plan: len(plan.keys() & ours.keys()))
    fitting = [n for n in averages if n in ours and averages[n].shape == ours[n].shape]
    missing = [name for name in averages if name not in fitting]
    unexpected = [name for name in table.entries if name not in averages]
    if missing or unexpected:
        shown = named([*missing, *unexpected])
        message = (
            f"{len(missing)} tensors of the source are missing or have other shapes, "
            f"{len(unexpected)} are not in it: {shown}"
        )
        yield finding("CK702", (missing or unexpected)[0], message, _again(subject))
    differing = _differing(subject, source, ours, averages, fitting)
    differing = _without_models_buffers(subject, source, ours, averages, differing)
    if differing:
        what = f"{len(differing)} of {len(fitting)} tensors differ: {named(differing)}"
        raw = _is_raw(subject, source, ours, differing)
        changed = [*source.changed()]
        other = f"; {named(changed)}: not the file that was averaged" if changed else ""
        yield finding("CK701", differing[0], what + raw + other, _again(subject))
    elif not fitting:
        message = "no tensor of the source is in the file"
        yield finding("CK701", "", message, _again(subject))


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

"""CK7: whether the weights are those of another checkpoint, to the last bit.

What a release holds is computed again from its source (``sources.py``, as ``extract-ema`` does) and
compared in the release's own types: an average that was cast for a slot of bfloat16 is compared
after the same cast. The names may be the model's, bare, or the average's own.
"""

from __future__ import annotations

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.container import named
from ckptool.checks.loading import weights_of
from ckptool.checks.sources import Source, Tensors
from ckptool.numerics import equal_after_cast
from ckptool.rules import finding

RULES = ("CK701", "CK702")


def _is_that_average(subject: Subject) -> Verdicts:
    table, source = weights_of(subject), subject.against
    if source is None or table is None:
        reason = "no source to compare with: --against" if table else "the file holds no weights"
        yield from (NotChecked(rule, reason) for rule in RULES)
        return
    ours = table.tensors
    averages = max(source.plans, key=lambda plan: len(plan.keys() & ours.keys()))
    fitting = [n for n in averages if n in ours and averages[n].shape == ours[n].shape]
    missing = [name for name in averages if name not in fitting]
    unexpected = [name for name in ours if name not in averages]
    if missing or unexpected:
        shown = named([*missing, *unexpected])
        message = (
            f"{len(missing)} tensors of the source are missing or have other shapes, "
            f"{len(unexpected)} are not in it: {shown}"
        )
        yield finding("CK702", (missing or unexpected)[0], message)
    differing = _differing(subject, source, ours, averages, fitting)
    if differing:
        what = f"{len(differing)} of {len(fitting)} tensors differ: {named(differing)}"
        raw = _is_raw(subject, source, ours, differing)
        yield finding("CK701", differing[0], what + raw)
    elif not fitting:
        yield finding("CK701", "", "no tensor of the source is in the file")


def _is_raw(subject: Subject, source: Source, ours: Tensors, differing: list[str]) -> str:
    """The usual mistake has a name: these are the raw weights of the source."""
    known = [name for name in differing if name in source.raw]
    first, rest = known[:1], known[1:]  # one tells most of them apart
    is_raw = first and not any(
        _differing(subject, source, ours, source.raw, names) for names in (first, rest)
    )
    return "; they are its raw weights" if is_raw else ""


def _differing(
    subject: Subject, source: Source, ours: Tensors, theirs: Tensors, names: list[str]
) -> list[str]:
    """The names whose tensors differ, here after a cast to the file's type."""

    def is_equal(name: str) -> bool:
        one, other = ours[name], theirs[name]
        return one.shape == other.shape and equal_after_cast(source.reader, one, other)

    equal = subject.over(names, is_equal, lambda name: ours[name].nbytes)
    return [name for name, same in zip(names, equal, strict=True) if not same]


CHECKS = (Check(RULES, _is_that_average),)

"""CK4: checks that EMA weights are averages of this model and as old as their counters claim.

``ema/findings.py`` holds the warnings of ``inspect``, a question a row; this module adds the
questions that only ``verify`` asks. Counters and decays are judged only where the file states them:
a missing number is no fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, a_model, an_average
from ckptool.checks.parts import facts_of, number, optimizers_of, steps_of
from ckptool.contents.inventory import scalars_in
from ckptool.ema.candidates import AVERAGED_MODEL, RAW_KIND, Candidate
from ckptool.ema.direction import direction_cosine
from ckptool.ema.findings import (
    NEVER_UPDATED,
    QUESTIONS,
    UNSTARTED,
    flag_findings,
    remaining_share,
    unread_findings,
)
from ckptool.ema.metadata import FLAGS
from ckptool.ema.ties import half_averaged, half_averaged_message
from ckptool.formats.provenance import read_provenance
from ckptool.names import AVERAGES
from ckptool.reports.base import DECAYS, UPDATES, EmaStatus, MainSlot
from ckptool.reports.rules import finding
from ckptool.tensors.blocks import same_values
from ckptool.tensors.volume import refuse_repetition
from ckptool.tree.describing import named

COARSE = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half the relative step between values
LATE = 0.5  # share of the expected updates, below which the counter is late
MAX_BATCHES = 64  # batches whose gradients are accumulated for one optimizer step


def _asked(rule: str, subject: Subject) -> Verdicts:
    """Ask one of ``inspect``'s questions of each candidate for which it can be answered."""
    can_tell, reason = ANSWERABLE[rule]
    asked = [c for c in subject.location.candidates if can_tell(subject, c)]
    for candidate in asked:
        message = QUESTIONS[rule](subject.checkpoint, subject.location, candidate)
        if message:
            yield finding(rule, candidate.address, message)
    if not asked:
        yield NotChecked(rule, reason, is_absent=True)


def _is_compared(_subject: Subject, candidate: Candidate) -> bool:
    return bool(candidate.agreement and candidate.agreement.compared)


def _has_direction(subject: Subject, candidate: Candidate) -> bool:
    location = subject.location
    if location.main_slot is not MainSlot.RAW or location.model is None or not candidate.is_average:
        return False
    reader = subject.checkpoint.reader
    return direction_cosine(location.inventory, location.model, candidate, reader) is not None


# By rule: the test whether the question can be answered, and the reason to report if not.
ANSWERABLE: Mapping[str, tuple[Callable[[Subject, Candidate], Any], str]] = {
    "CK404": (_is_compared, "no values of EMA weights and model that can be compared"),
    "CK405": (_is_compared, "no values of EMA weights and model that can be compared"),
    "CK406": (lambda _subject, _candidate: True, ""),
    "CK407": (
        lambda _subject, candidate: remaining_share(candidate) is not None,
        "the file does not state a constant decay and the updates",
    ),
    "CK408": (_has_direction, "no last step of an optimizer that tells the two state dicts apart"),
    "CK416": (_is_compared, "no values of EMA weights and model that can be compared"),
    "CK417": (
        lambda subject, candidate: subject.location.model and AVERAGED_MODEL in candidate.meta,
        "no EMA weights that state n_averaged",
    ),
    "CK418": (
        lambda _subject, candidate: candidate.is_noted,
        "no note of ckptool says that these are EMA weights",
    ),
}


def _absent(subject: Subject) -> Verdicts:
    """Report a file without EMA weights that are in the model or that ``extract-ema`` takes."""
    location = subject.location
    if location.selected is not None or location.main_slot is MainSlot.AVERAGED:
        return
    places = named([f"{c.address or '(root)'} ({c.kind})" for c in location.candidates])
    if not location.candidates:
        yield finding("CK401", "", "no EMA weights were found")
    elif all(candidate.is_unstarted for candidate in location.candidates):
        yield finding("CK401", "", f"{UNSTARTED}: {places}")
    elif location.status is EmaStatus.AMBIGUOUS:
        yield finding("CK401", "", f"it is not clear which are the EMA weights: {places}")
    else:
        yield finding("CK401", "", f"only weights that are EMA weights if you name them: {places}")


def _shapes(subject: Subject) -> Verdicts:
    if not any(candidate.alignment for candidate in subject.averages):
        yield NotChecked(
            "CK402", "no EMA weights that could be paired with the model", is_absent=True
        )
    for candidate in subject.averages:
        alignment = candidate.alignment
        if (
            alignment is not None
            and candidate.doubt
            and (alignment.mismatched or alignment.unplaced)
        ):
            yield finding("CK402", candidate.address, candidate.doubt)


def _partial(subject: Subject) -> Verdicts:
    chosen = subject.location.selected
    if chosen is None or chosen.alignment is None:
        yield NotChecked("CK409", "no EMA weights that pair with the model", is_absent=True)
        return
    missing, model = chosen.alignment.missing_keys, subject.location.model
    weights = [n for n in missing if model and model.entries[n].dtype.is_floating]
    if weights:
        total = len(chosen.alignment.pairs) + len(missing)
        absent = [*weights, *(name for name in missing if name not in set(weights))]
        verb = "is" if len(absent) == 1 else "are"
        message = f"{len(absent)} of the model's {total} tensors {verb} not in it: {named(absent)}"
        half = half_averaged(chosen, model, subject.checkpoint.reader)
        message += f"; {half_averaged_message(half)}" if half else ""
        yield finding("CK409", chosen.address, message)


def _flags(subject: Subject) -> Verdicts:
    said = scalars_in(subject.checkpoint.tree)
    if not any(isinstance(said.get(flag), bool) for flag in FLAGS):
        yield NotChecked("CK403", "no EMA flag in the file", is_absent=True)
    yield from flag_findings(subject.checkpoint, subject.location)


def _numbers(names: tuple[str, ...], subject: Subject) -> Iterator[tuple[Candidate, Any]]:
    """Yield each candidate that states a number under one of the names, with that number."""
    for candidate in subject.location.candidates:
        for name in names if candidate.kind != RAW_KIND else ():
            value = number(candidate.meta.get(name))
            if value is not None:
                yield candidate, value
                break


def _decay(subject: Subject) -> Verdicts:
    stated = list(_numbers(DECAYS, subject))
    for candidate, decay in stated:
        if not 0 < decay < 1:
            yield finding("CK410", candidate.address, f"the decay is {decay:g}")
    if not stated:
        yield NotChecked("CK410", "the file does not state the decay", is_absent=True)


def _updates(subject: Subject) -> Verdicts:
    stated = [each for each in _numbers(UPDATES, subject) if not each[0].is_unstarted]
    steps = _steps_made(subject)
    for candidate, updates in stated:
        message = _odd_count(updates, steps, candidate.meta)
        if message:
            yield finding("CK411", candidate.address, message)
    if not stated:
        reason = "the file counts no updates, or the averaging has not begun"
        yield NotChecked("CK411", reason, is_absent=True)


# Keys that count the steps of the whole run. "step" and "iter" may count the steps of an epoch.
WHOLE_RUN = ("global_step", "global_iteration")


def _steps_made(subject: Subject) -> list[float]:
    """Return the run's step counts: the file's own counter and that of each optimizer."""
    said = scalars_in(subject.checkpoint.tree)
    is_clear = any(name in said for name in WHOLE_RUN)
    step = facts_of(subject).get("global_step") if is_clear else None
    steps = [step] if step is not None else []
    counts = (steps_of(subject, optimizer) for optimizer in optimizers_of(subject))
    return [*steps, *(max(made) for made in counts if made)]


def _odd_count(updates: float, steps: list[float], meta: Mapping[str, Any]) -> str | None:
    if updates == 0:
        return NEVER_UPDATED
    every = number(meta.get("update_every", 1))
    if not steps or every is None or not every >= 1:
        return None
    most, least = max(steps), min(steps)
    if updates > most // every + 1 and not _is_multiple(updates, most / every):
        return (
            f"the EMA counts {updates:g} updates, one in {every:g} steps, but the run has made "
            f"only {most:g} steps: one of the two counters was not restored"
        )
    begins = number(meta.get("update_start_step", meta.get("update_after_step")))
    expected = (least - begins) / every if begins is not None and "update_every" in meta else 0
    if updates < LATE * expected:
        return (
            f"the EMA counts {updates:g} updates, one in {every:g} steps since step {begins:g}, "
            f"but the run has made {least:g} steps: the EMA or its counter was made anew"
        )
    return None


def _is_multiple(updates: float, steps: float) -> bool:
    """Return whether the EMA may be updated after each of the several batches of a step."""
    times = round(updates / steps) if steps > 0 and math.isfinite(updates) else 0
    return 2 <= times <= MAX_BATCHES and abs(updates - times * steps) <= times


def _copies(subject: Subject) -> Verdicts:
    """Compare in full the state dicts that were assumed equal after a sampled comparison."""
    assumed = [(c, each) for c in subject.location.candidates for each in c.assumed_equal]
    reader = subject.checkpoint.reader
    for candidate, other in assumed:
        refuse_repetition(ref for pair in other.pairs for ref in pair)
        same = subject.over(
            other.pairs, lambda pair: same_values(reader, *pair), lambda pair: pair[0].nbytes
        )
        differing = same.count(False)
        if differing:
            message = f"differs from {other.what} in {differing} of {len(other.pairs)} tensors"
            yield finding("CK412", candidate.address, message)
    if not assumed and not any(c.aliases for c in subject.location.candidates):
        yield NotChecked("CK412", "only one EMA copy", is_absent=True)


def _precision(subject: Subject) -> Verdicts:
    stated = list(_numbers(DECAYS, subject))
    for candidate, decay in stated:
        kinds = {ref.dtype.name for ref in candidate.table.tensors.values()} & COARSE.keys()
        lost = [kind for kind in sorted(kinds) if 0 < 1 - decay < COARSE[kind]]
        if lost:
            message = f"a decay of {decay:g} moves it by less than {lost[0]} can hold"
            yield finding("CK413", candidate.address, message)
    if not stated:
        yield NotChecked("CK413", "the file does not state the decay", is_absent=True)


def _main_slot(subject: Subject) -> Verdicts:
    slot = subject.location.told_slot
    if slot is MainSlot.AVERAGED:
        yield finding("CK414", _slot(subject), f"these are {_what_is_averaged(subject)}")
    elif slot is MainSlot.UNKNOWN:
        yield NotChecked("CK414", "cannot tell from this file")


def _what_is_averaged(subject: Subject) -> str:
    """Return the averaged weights in words, by the note of ckptool or the kind that was found."""
    note, chosen = read_provenance(subject.checkpoint.metadata), subject.location.selected
    kind = chosen.kind if chosen is not None and chosen.kind in AVERAGES else "ema"
    return (note.mean if note is not None else None) or f"the {kind.upper()} weights"


def _slot(subject: Subject) -> str:
    return "/".join(map(str, subject.location.model.address)) if subject.location.model else ""


def _raw_weights(subject: Subject) -> Verdicts:
    """Report a file without the raw weights, to which the optimizer's state belongs."""
    location = subject.location
    note = read_provenance(subject.checkpoint.metadata)
    averages = subject.averages
    promoted = note is not None and note.command == "promote-ema"
    is_mean = note is not None and note.command == "average"  # of checkpoints, written by ckptool
    is_averaged = (
        location.main_slot is MainSlot.AVERAGED
        or is_mean
        or (promoted and (not averages or any(c.is_same_as_model for c in averages)))
    )
    aside = location.raw is not None and not location.raw.is_same_as_model
    computed = any(c.kind == "schedule-free" for c in location.candidates)  # by the optimizer
    if is_averaged and not aside and not computed:
        source = f" promoted from {note.source}" if promoted and note else ""
        what = "a mean of several checkpoints" if is_mean else f"the EMA weights{source}"
        message = f"these are {what}; the raw ones are not in this file"
        yield finding("CK419", _slot(subject), message)
    elif location.told_slot is MainSlot.UNKNOWN:
        yield NotChecked("CK419", "cannot tell from this file", is_absent=True)


def _sidecars(subject: Subject) -> Verdicts:
    yield from unread_findings(subject.location)


CHECKS = (
    *(
        Check((rule,), partial(_asked, rule), (an_average,))
        for rule in QUESTIONS
        if rule != "CK303"  # values.py samples all sections of the checkpoint
    ),
    Check(("CK401",), _absent),
    Check(("CK402",), _shapes, (an_average, a_model)),
    Check(("CK403",), _flags),
    Check(("CK409",), _partial, (an_average, a_model)),
    Check(("CK410",), _decay, (an_average,)),
    Check(("CK411",), _updates, (an_average,)),
    Check(("CK412",), _copies, (an_average,)),
    Check(("CK413",), _precision, (an_average,)),
    Check(("CK414",), _main_slot, (a_model,)),
    Check(("CK419",), _raw_weights, (a_model,)),
    Check(("CK420",), _sidecars, (a_model,)),
)

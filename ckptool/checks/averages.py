"""CK4: whether the averaged weights are averages, of this model, and as old as they claim.

What ``inspect`` warns of stands in ``ema_findings.py``, a question a row; here are the questions
that only ``verify`` asks. Counters and decays are judged where the file states them, and nowhere
else: a missing number is no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ckptool.candidates import Candidate
from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, a_model, an_average
from ckptool.checks.container import named
from ckptool.checks.parts import facts_of, number
from ckptool.direction import direction_cosine
from ckptool.ema_findings import FLAGS, QUESTIONS, Question, flag_findings
from ckptool.formats.base import TensorReader
from ckptool.inventory import scalars_in
from ckptool.numerics import same_values
from ckptool.rules import finding
from ckptool.tree import TensorRef

COARSE = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half a step between neighbours, relative
LATE = 0.5  # of the updates that the run should have made


def _asked(question: Question, subject: Subject) -> Verdicts:
    """A question of ``inspect``'s, put to each candidate that it can be answered for."""
    can_tell, reason = ANSWERABLE[question.rule]
    asked = [c for c in subject.location.candidates if can_tell(subject, c)]
    for candidate in asked:
        message = question.ask(subject.checkpoint, subject.location, candidate)
        if message:
            yield finding(question.rule, candidate.address, message)
    if not asked:
        yield NotChecked(question.rule, reason, is_absent=True)


def _is_compared(_subject: Subject, candidate: Candidate) -> bool:
    return bool(candidate.agreement and candidate.agreement.compared)


def _states_age(_subject: Subject, candidate: Candidate) -> bool:
    stated = {name for name in (*DECAYS[:1], *UPDATES) if candidate.meta.get(name) is not None}
    return "decay" in stated and len(stated) > 1


def _has_direction(subject: Subject, candidate: Candidate) -> bool:
    location = subject.location
    if location.main_slot != "raw" or location.model is None or not candidate.is_average:
        return False
    reader = subject.checkpoint.reader
    return direction_cosine(location.inventory, location.model, candidate, reader) is not None


DECAYS = ("decay", "ema_decay")
UPDATES = ("num_updates", "updates")

# When a question can be answered, and what to say when it cannot.
ANSWERABLE: Mapping[str, tuple[Callable[[Subject, Candidate], bool], str]] = {
    "CK404": (_is_compared, "no values of averages and model that can be compared"),
    "CK405": (_is_compared, "no values of averages and model that can be compared"),
    "CK406": (lambda _subject, _candidate: True, ""),
    "CK407": (_states_age, "the file does not state both decay and updates"),
    "CK408": (_has_direction, "no moments of an optimizer that would tell"),
}


def _absent(subject: Subject) -> Verdicts:
    """What ``extract-ema`` would take unasked, or the model's slot itself."""
    location = subject.location
    if location.selected is not None or location.main_slot == "averaged":
        return
    places = named([f"{c.address or '(the top)'} ({c.kind})" for c in location.candidates])
    if not location.candidates:
        yield finding("CK401", "", "no averaged weights were found")
    elif location.status == "ambiguous":
        yield finding("CK401", "", f"it is not clear which are the averaged weights: {places}")
    else:
        yield finding("CK401", "", f"nothing that is an average without being asked for: {places}")


def _shapes(subject: Subject) -> Verdicts:
    if not any(candidate.alignment for candidate in subject.averages):
        yield NotChecked("CK402", "no averages that could be paired with the model", is_absent=True)
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
        yield NotChecked("CK409", "no averages that pair with the model", is_absent=True)
        return
    missing, model = chosen.alignment.missing_keys, subject.location.model
    weights = [n for n in missing if model and model.entries[n].dtype.is_floating]
    if weights:
        total = len(chosen.alignment.pairs) + len(missing)
        message = f"{len(weights)} of the model's {total} tensors have none: {named(weights)}"
        yield finding("CK409", chosen.address, message)


def _flags(subject: Subject) -> Verdicts:
    said = scalars_in(subject.checkpoint.tree)
    if not any(isinstance(said.get(flag), bool) for flag in FLAGS):
        yield NotChecked("CK403", "the file declares nothing of an EMA", is_absent=True)
    yield from flag_findings(subject.checkpoint, subject.location)


def _numbers(names: tuple[str, ...], subject: Subject) -> Iterator[tuple[Candidate, Any]]:
    """The candidates that state a number, with it."""
    for candidate in subject.location.candidates:
        for name in names:
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
    stated = list(_numbers(UPDATES, subject))
    step = facts_of(subject).get("global_step")
    for candidate, updates in stated:
        message = _odd_count(updates, step, candidate.meta)
        if message:
            yield finding("CK411", candidate.address, message)
    if not stated:
        yield NotChecked("CK411", "the file does not count the updates", is_absent=True)


def _odd_count(updates: float, step: float | None, meta: Mapping[str, Any]) -> str | None:
    if updates == 0:
        return "it has never been updated: num_updates is 0"
    if step is None:
        return None
    every = number(meta.get("update_every", 1))
    if every is None or not every >= 1:
        return None
    if updates > step // every + 1:
        return f"{updates} updates, one in {every} steps, are more than {step} steps allow"
    begins = number(meta.get("update_start_step", meta.get("update_after_step")))
    expected = (step - begins) / every if begins is not None and "update_every" in meta else 0
    if updates < LATE * expected:
        return f"{updates} updates, one in {every} steps, since step {begins}; the run is at {step}"
    return None


def _copies(subject: Subject) -> Verdicts:
    """What a sample took for the same is compared in full."""
    believed = [(c, belief) for c in subject.location.candidates for belief in c.believed]
    same_in_full = partial(_same_pair, subject.checkpoint.reader)
    for candidate, belief in believed:
        same = subject.over(belief.pairs, same_in_full, lambda pair: pair[0].nbytes)
        differing = same.count(False)
        if differing:
            message = f"differs from {belief.what} in {differing} of {len(belief.pairs)} tensors"
            yield finding("CK412", candidate.address, message)
    if not believed and not any(c.aliases for c in subject.location.candidates):
        yield NotChecked("CK412", "there is one copy", is_absent=True)


def _same_pair(reader: TensorReader, pair: tuple[TensorRef, TensorRef]) -> bool:
    return same_values(reader, *pair)


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
    location = subject.location
    if location.main_slot == "averaged":
        where = location.model.address if location.model else ()
        yield finding("CK414", "/".join(map(str, where)), "these are the averaged weights")
    elif location.main_slot == "unknown":
        yield NotChecked("CK414", "this file does not tell")


CHECKS = (
    *(
        Check((question.rule,), partial(_asked, question), (an_average,))
        for question in QUESTIONS
        if question.rule != "CK303"  # values.py samples every section
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
)

"""What is worth saying about averages that were found: a row a finding.

Each row asks one question of a location and answers with a message or None. Values are read here,
a sample of them, which is why only commands that report findings ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ckptool.candidates import RAW_KIND, Candidate, EmaLocation
from ckptool.direction import direction_cosine
from ckptool.formats.base import Checkpoint
from ckptool.inventory import scalars_in
from ckptool.reports import Finding
from ckptool.rules import finding

IMMATURE_ABOVE = 0.05  # share of the initial weights still in the average

Ask = Callable[[Checkpoint, EmaLocation, Candidate], "str | None"]


class Question(NamedTuple):
    """A row: the rule, and what to ask of each candidate."""

    rule: str
    ask: Ask


def _identical(_checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate) -> str | None:
    seen = candidate.agreement
    if location.main_slot == "averaged" or seen is None or not seen.identical:
        return None
    return (
        f"identical to the model's in all {seen.compared} tensors compared: never updated, or "
        "already copied into the model"
    )


def _unrelated(_checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate) -> str | None:
    if not candidate.is_unrelated or not candidate.agreement:
        return None
    return (
        f"its values are unrelated to the model's (relative distance "
        f"{candidate.agreement.distance:.2f}): no average of these weights, or of very early ones"
    )


def _not_finite(
    _checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate
) -> str | None:
    seen = candidate.agreement
    return "a sample of its values holds NaN or infinities" if seen and not seen.finite else None


def _swapped(_checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate) -> str | None:
    if candidate.kind != RAW_KIND or candidate.layout is None:
        return None
    return (
        f"{candidate.layout.library} swaps on saving: this slot holds the raw weights, the model's "
        "own slot the averaged ones"
    )


def _immature(_checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate) -> str | None:
    decay = candidate.meta.get("decay")
    updates = candidate.meta.get("num_updates", candidate.meta.get("updates"))
    if not isinstance(decay, float) or not isinstance(updates, int) or not 0 < decay < 1:
        return None
    share = decay**updates if 0 < updates < 10**12 else 0.0
    if share <= IMMATURE_ABOVE:
        return None
    settings = f"decay {decay:g}, {updates} updates"
    return f"young: {share:.0%} of it are still the initial weights ({settings})"


def _against(checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate) -> str | None:
    if location.main_slot != "raw" or location.model is None or not candidate.is_average:
        return None
    cosine = direction_cosine(location.inventory, location.model, candidate, checkpoint.reader)
    if cosine is None or cosine > 0:
        return None
    return (
        f"the optimizer's last step leads from the model's slot to this one (cosine {cosine:.2f}): "
        "the model's slot may hold the averages, and this one the raw weights"
    )


QUESTIONS = (
    Question("CK303", _not_finite),
    Question("CK404", _identical),
    Question("CK405", _unrelated),
    Question("CK406", _swapped),
    Question("CK407", _immature),
    Question("CK408", _against),
)


def ema_findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """Everything that the rows have to say, and declarations that nothing answers to."""
    for candidate in location.candidates:
        for question in QUESTIONS:
            message = question.ask(checkpoint, location, candidate)
            if message:
                yield finding(question.rule, candidate.address, message)
    yield from flag_findings(checkpoint, location)


FLAGS = ("has_ema", "using_ema")  # at the top; the second says that the run averages


def stale_findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """An average that is taken, and has the model's own values."""
    chosen = location.selected
    message = _identical(checkpoint, location, chosen) if chosen is not None else None
    if chosen is not None and message:
        yield finding("CK404", chosen.address, message)


def flag_findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """What the file declares of its EMA, against what is there."""
    said = scalars_in(checkpoint.tree)
    averages = [candidate for candidate in location.candidates if candidate.is_average]
    for flag in FLAGS:
        if said.get(flag) is True and not location.candidates:
            yield finding("CK403", flag, f"{flag} is True, but no EMA was found")
    if said.get("has_ema") is False and averages:
        where = averages[0].address
        yield finding("CK403", "has_ema", f"has_ema is False, but there is an EMA at {where}")

"""CK5: what a resume needs beside weights, optimizer and generators, and whether it is consistent.

The costliest bug of this kind is silent: a resume that starts its best metric at infinity
overwrites the best checkpoint after one epoch. So a best value must be there, be finite, and be no
worse than the last result that the same file reports.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.parts import facts_of, is_scaler, is_scheduler, name_of, number, parts
from ckptool.inventory import is_optimizer, is_state_dict
from ckptool.rules import finding
from ckptool.training import better_direction
from ckptool.tree import Tree, format_address

LONGEST = 500  # characters of an address that may say what it measures
COUNTED = re.compile(r"wait|bad_epochs|improve|counter|stopped", re.IGNORECASE)
HELD_OUT = re.compile(r"val|eval|test", re.IGNORECASE)
NOISE = re.compile(
    r"^(best|val|valid|validation|eval|test)_|_?(stats|metrics|results|scores|logs?)$"
)


def _model(subject: Subject) -> Verdicts:
    model = subject.location.model
    if model is None or not any(ref.dtype.is_floating for ref in model.entries.values()):
        yield finding("CK519", "", "no weights at the places where models are kept")


def _progress(subject: Subject) -> Verdicts:
    if not facts_of(subject):
        yield finding("CK513", "", "neither an epoch nor a step is stated")


# ------------------------------------------------------------------------------------ best metrics


def _plain(address: str) -> str:
    """``val_stats/loss`` and ``best_val_loss`` are both about ``loss``."""
    words = [NOISE.sub("", part) for part in address[:LONGEST].lower().split("/")]
    name = "_".join(word for word in words if word and not HELD_OUT.fullmatch(word))
    while name != (shorter := NOISE.sub("", name)):
        name = shorter
    return name


def _best(subject: Subject) -> Verdicts:
    state = subject.training
    if not state.best:
        yield NotChecked("CK514", "no best metric is stored", is_absent=True)
    begun = max(facts_of(subject).values(), default=0) > 0
    last = {_plain(at): number(v) for at, v in state.metrics.items() if "train" not in at.lower()}
    validated = _has_results(subject)
    for address, value in state.best.items():
        best = number(value)
        was_rated = validated or _plain(address) in last or "/" not in address
        is_due = begun and was_rated
        message = None if best is None else _reset(address, best, last, is_due=is_due)
        if message:
            yield finding("CK514", address, message)


def _has_results(subject: Subject) -> bool:
    """Whether the model was validated, as far as another finite number tells."""
    state = subject.training
    held_out = [value for at, value in state.metrics.items() if HELD_OUT.search(at)]
    numbers = map(number, (*held_out, *state.best.values()))
    return any(value is not None and math.isfinite(value) for value in numbers)


def _reset(
    address: str, best: float, last: Mapping[str, float | None], *, is_due: bool
) -> str | None:
    name = _plain(address)
    current = last.get(name)
    if not math.isfinite(best):
        return f"it is {best:g} although training has begun" if is_due else None
    if current is None or not math.isfinite(current):
        return None
    direction = better_direction(name)
    if direction and (best - current) * direction < 0 and not math.isclose(best, current):
        return f"the best is {best:g}, but the last result, {current:g}, is better"
    return None


def _best_present(subject: Subject) -> Verdicts:
    state = subject.training
    results = [at for at in state.metrics if HELD_OUT.search(at)]
    if not state.best and results:
        yield finding("CK515", results[0], "a validation result, but no best value beside it")
    elif not state.best:
        yield NotChecked("CK515", "there are no validation results", is_absent=True)


def _patience(subject: Subject) -> Verdicts:
    state = subject.training
    stated = {at: number(n) for at, n in state.early_stopping.items() if COUNTED.search(at)}
    counters = {at: count for at, count in stated.items() if count is not None}
    most = max(facts_of(subject).values(), default=math.inf)
    for address, count in counters.items():
        if count < 0 or count > most + 1:
            message = f"{count:g} rounds without improvement, after {most:g} in all"
            yield finding("CK516", address, message)
    if not counters:
        yield NotChecked("CK516", "there is no early-stopping counter", is_absent=True)


# ---------------------------------------------------------------------------------------- exchanged


class Form(NamedTuple):
    """What a key claims, by a word in it, and by which form the claim is told to be wrong."""

    claim: re.Pattern[str]
    what: str


FORMS: Mapping[str, Form] = {
    "optimizer": Form(re.compile(r"optim"), "the state of an optimizer"),
    "scheduler": Form(re.compile(r"sched"), "the state of a scheduler"),
    "scaler": Form(re.compile(r"scaler"), "the state of a gradient scaler"),
    "model": Form(re.compile(r"^(model|state_dict|net|network|model_state_dict)$"), "weights"),
}


def _form(node: Tree) -> str | None:
    if is_optimizer(node):
        return "optimizer"
    if is_scheduler(node):
        return "scheduler"
    if is_scaler(node):
        return "scaler"
    return "model" if is_state_dict(node) and isinstance(node, dict) and len(node) > 1 else None


def _claim(name: str) -> str | None:
    """What a key says that it holds; a key with two of the words says nothing."""
    claims = [kind for kind, form in FORMS.items() if form.claim.search(name)]
    return claims[0] if len(claims) == 1 else None


def _exchanged(subject: Subject) -> Verdicts:
    looked = False
    for address, node in parts(subject.checkpoint.tree):
        if not isinstance(address[-1], str) and not isinstance(node, dict):
            continue
        claim, form = _claim(name_of(address)), _form(node)
        is_nested = len(address) > 1 and isinstance(address[-1], str)
        looked = looked or claim is not None
        if claim and form and claim != form and not (is_nested and form == "model"):
            message = f"it is called {FORMS[claim].what}, but holds {FORMS[form].what}"
            yield finding("CK517", format_address(address), message)
    if not looked:
        yield NotChecked("CK517", "no part is named after what it holds", is_absent=True)


# ---------------------------------------------------------------------------------------- file name

EPOCH = re.compile(r"(?:^|[_\-.])(?:e|ep|epoch)[=_\-]?(\d+)(?=[_\-.]|$)", re.IGNORECASE)
STEP = re.compile(
    r"(?:^|[_\-.])(?:global_?)?(?:step|iter)s?[=_\-]?(\d+)(?=[_\-.]|$)", re.IGNORECASE
)
RESULT = re.compile(r"(?:^|[_\-])([a-z][a-z_/]*?)[=_]?(\d+\.\d+)(?=[_\-.]|$)", re.IGNORECASE)


def _file_name(subject: Subject) -> Verdicts:
    said = list(_said_by_name(subject))
    for what, claimed, found in said:
        if not found:
            message = f"the name says {what} {claimed}, which the content does not"
            yield finding("CK518", "", message)
    if not said:
        yield NotChecked("CK518", "the name says nothing that the content says too", is_absent=True)


def _said_by_name(subject: Subject) -> Iterator[tuple[str, str, bool]]:
    """(what, as it is written, whether the content agrees), where the content speaks of it."""
    stem, facts = subject.path.stem, facts_of(subject)
    for pattern, fact in ((EPOCH, "epoch"), (STEP, "global_step")):
        match = pattern.search(stem)
        if match and fact in facts:
            # Half of the trainers count from 0, and some save before they count.
            agrees = abs(facts[fact] - int(match[1])) <= 1
            yield fact.replace("_", " "), match[1], agrees
    for match in RESULT.finditer(stem):
        values = _results_called(subject, match[1])
        if values:
            decimals = len(match[2].partition(".")[2])
            agrees = any(f"{value:.{decimals}f}" == match[2] for value in values)
            yield match[1], match[2], agrees


def _results_called(subject: Subject, name: str) -> list[float]:
    """Best and last results whose names, without underscores, end with that in the file's name."""
    wanted = re.sub(r"[_/]", "", _plain(name) or name.lower())
    state = subject.training
    numbers = {**state.metrics, **state.best}
    return [
        float(value)
        for address, stated in numbers.items()
        if (value := number(stated)) is not None
        and (wanted == _plain(address).replace("_", "") or _joined(address).endswith(wanted))
    ]


def _joined(address: str) -> str:
    """``val_stats/loss`` as it stands in names of files: ``valloss``."""
    return re.sub(r"_?(stats|metrics|results)|[_/]", "", address.lower())


CHECKS = (
    Check(("CK513",), _progress),
    Check(("CK514",), _best),
    Check(("CK515",), _best_present),
    Check(("CK516",), _patience),
    Check(("CK517",), _exchanged),
    Check(("CK518",), _file_name),
    Check(("CK519",), _model),
)

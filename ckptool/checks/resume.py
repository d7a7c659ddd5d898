"""CK5: checks of the rest of a training state: progress, best metrics, early stopping, names.

The costliest bug of this kind is silent: a resume that starts its best metric at infinity
overwrites the best checkpoint after one epoch. So a best value must be there, be finite, and be no
worse than the last result that the same file reports.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.parts import (
    counters_of,
    excused,
    facts_of,
    is_scaler,
    is_scheduler,
    name_of,
    number,
    optimizers_of,
    parts,
    steps_of,
)
from ckptool.contents.inventory import is_optimizer, is_state_dict
from ckptool.contents.metrics import is_held_out, is_of_training, measured, metric_tokens
from ckptool.names import Words, says, whole
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.reports.rules import finding
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, Tree

MIN_DELTA = 0.01  # relative amount by which a result may be better than the stored best one
EPOCHS = whole("epoch")
COUNTED = whole("wait", "bad_epoch", "improve", "improvement", "counter", "stopped")


def _model(subject: Subject) -> Verdicts:
    model = subject.location.model
    if model is None or not any(ref.dtype.is_floating for ref in model.entries.values()):
        message = "no weights at the places where models are kept"
        yield excused(subject, "weights", "CK519") or finding("CK519", "", message)


def _progress(subject: Subject) -> Verdicts:
    if not facts_of(subject):
        message = "neither an epoch nor a step is stated"
        yield excused(subject, "progress", "CK513") or finding("CK513", "", message)


# ------------------------------------------------------------------------------------ best metrics


def _best(subject: Subject) -> Verdicts:
    state = subject.training
    if not state.best:
        yield NotChecked("CK514", "no best metric is stored", is_absent=True)
    begun = max(facts_of(subject).values(), default=0) > 0
    last = _last_results(state.metrics)
    validated = _has_results(subject)
    for address, value in state.best.items():
        best = number(value)
        is_due = begun and (validated or measured(address) in last)
        told = state.better.get(address)
        sign = told.sign if told else 0
        message = None if best is None else _reset(address, best, last, sign, is_due=is_due)
        if message:
            yield finding("CK514", address, message)


def _last_results(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the last validation results, by the quantity that they measure.

    A plain ``loss`` at the top is left out: usually it is the loss of the last batch.
    """
    found: dict[str, list[float]] = {}
    for address, value in metrics.items():
        is_result = is_held_out(address) or "/" in address
        if is_result and not is_of_training(address) and (n := number(value)) is not None:
            found.setdefault(measured(address), []).append(n)
    return found


def _has_results(subject: Subject) -> bool:
    """Return whether any validation result or best value is finite: then validation has run."""
    state = subject.training
    held_out = [value for at, value in state.metrics.items() if is_held_out(at)]
    numbers = map(number, (*held_out, *state.best.values()))
    return any(value is not None and math.isfinite(value) for value in numbers)


def _reset(
    address: str, best: float, last: Mapping[str, list[float]], direction: int, *, is_due: bool
) -> str | None:
    if not math.isfinite(best):
        return f"it is {best:g} although training has begun" if is_due else None
    results = [value for value in last.get(measured(address), []) if math.isfinite(value)]
    # Early stopping keeps a best value until another is better by more than its min_delta.
    if results and direction and all(_is_better(each, best, direction) for each in results):
        return f"the best is {best:g}, but the last result, {results[0]:g}, is better"
    return None


def _is_better(value: float, best: float, direction: int) -> bool:
    is_near = math.isclose(value, best, rel_tol=MIN_DELTA, abs_tol=MIN_DELTA / 10)
    return (value - best) * direction > 0 and not is_near


def _best_present(subject: Subject) -> Verdicts:
    state = subject.training
    results = [at for at in state.metrics if is_held_out(at)]
    if not state.best and results:
        yield finding("CK515", results[0], "a validation result is saved, but no best value")
    elif not state.best:
        yield NotChecked("CK515", "there are no validation results", is_absent=True)


def _patience(subject: Subject) -> Verdicts:
    state = subject.training
    stated = {
        at: number(n)
        for at, n in state.early_stopping.items()
        if says(at.rpartition("/")[2], COUNTED)
    }
    counters = {at: count for at, count in stated.items() if count is not None}
    for address, count in counters.items():
        most = _most_rounds(subject, address)
        if count < 0 or count > most + 1:
            message = f"{count:g} rounds without improvement, after {most:g} in all"
            yield finding("CK516", address, message)
    if not counters:
        yield NotChecked("CK516", "there is no early-stopping counter", is_absent=True)


def _most_rounds(subject: Subject, address: str) -> float:
    """Return how often the model can have been validated.

    A counter of epochs allows the larger of the run's epochs and steps. Any other allows as many as
    the run made steps, since an epoch may have several validations.
    """
    facts = facts_of(subject)
    if not says(address.rpartition("/")[2], EPOCHS):
        facts.pop("epoch", None)
    return max(facts.values(), default=math.inf)


# ---------------------------------------------------------------------------------------- exchanged


class Form(NamedTuple):
    """A kind of part: the words by which a key claims to be one, and its name in messages."""

    claim: Words
    what: str


WEIGHTS = ("model", "state_dict", "net", "network", "model_state_dict")
FORMS: Mapping[str, Form] = {
    "optimizer": Form(whole("optim", "optimizer", "optimiser"), "the state of an optimizer"),
    "scheduler": Form(whole("sched", "scheduler", "lrscheduler"), "the state of a scheduler"),
    "scaler": Form(whole("scaler", "gradscaler"), "the state of a gradient scaler"),
    "model": Form(whole(*(f"^{name}$" for name in WEIGHTS)), "weights"),
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
    """Return the kind of part that a key claims to hold; None if it claims none, or two."""
    claims = [kind for kind, form in FORMS.items() if says(name, form.claim)]
    return claims[0] if len(claims) == 1 else None


def _exchanged(subject: Subject) -> Verdicts:
    looked = False
    claims = [
        (address, _claim(name_of(address)), _form(node))
        for address, node in parts(subject.checkpoint.tree)
        if isinstance(address[-1], str) or isinstance(node, dict)
    ]
    is_misplaced = any(
        claim == "model" and form not in {None, "model"} for _, claim, form in claims
    )
    for address, claim, form in claims:
        looked = looked or claim is not None
        if form == "model" and not (is_misplaced and _is_part(address)):
            continue  # tensors of a data scaler, a noise schedule or flattened states
        if claim and form and claim != form:
            message = f"it is called {FORMS[claim].what}, but holds {FORMS[form].what}"
            yield finding("CK517", format_address(address), message)
    if not looked:
        yield NotChecked("CK517", "no part is named after what it holds", is_absent=True)


def _is_part(address: Address) -> bool:
    """Return whether it is at the top, or in a list: below that, tensors may be anywhere."""
    return len(address) == 1 or not isinstance(address[-1], str)


# ---------------------------------------------------------------------------------------- file name

EPOCH = regex(
    r"(?:^|[_\-.])(?:(?:ep|epoch)[=_\-]?(\d+)|e[=_\-]?(\d{2,}))(?=[_\-.]|$)", re.IGNORECASE
)
STEP = regex(r"(?:^|[_\-.])(?:global_?)?(?:step|iter)s?[=_\-]?(\d+)(?=[_\-.]|$)", re.IGNORECASE)
RESULT = regex(r"(?:^|[_\-])([a-z][a-z_/]*?)[=_]?(\d+\.\d+)(?=[_\-.]|$)", re.IGNORECASE)


def _file_name(subject: Subject) -> Verdicts:
    said = list(_said_by_name(subject))
    for what, claimed, found in said:
        if not found:
            message = f"the name says {what} {claimed}, which the content does not"
            yield finding("CK518", "", message)
    if not said:
        yield NotChecked("CK518", "the file name has no epoch or step", is_absent=True)


def _said_by_name(subject: Subject) -> Iterator[tuple[str, str, bool]]:
    """Yield (what, as it is written, whether the content agrees), if the content states it too."""
    stem = subject.path.stem
    for pattern, fact in ((EPOCH, "epoch"), (STEP, "global_step")):
        match = pattern.search(stem)
        stated = _counted(subject, fact)
        if match and stated:
            claimed = next(filter(None, match.groups()))
            # Half of the trainers count from 0, and some save before they count.
            agrees = any(abs(value - int(claimed[:20])) <= 1 for value in stated)
            yield fact.replace("_", " "), claimed, agrees
    for match in RESULT.finditer(stem):
        values = _results_called(subject, match[1])
        if values:
            decimals = len(match[2].partition(".")[2])
            agrees = any(f"{value:.{decimals}f}" == match[2] for value in values)
            yield match[1], match[2], agrees


def _counted(subject: Subject, fact: str) -> list[float]:
    """Return the values that the content states for the epoch or for steps.

    Steps are counted in batches and in updates, so all counters are returned. An epoch of -1 counts
    as not stated: YOLO writes it when training is finished.
    """
    stated = facts_of(subject).get(fact)
    if stated is None or stated < 0:
        return []
    if fact == "epoch":
        return [stated]
    updates = [n for o in optimizers_of(subject) for n in steps_of(subject, o)]
    return [stated, *(each.value for each in counters_of(subject)), *updates]


def _results_called(subject: Subject, name: str) -> list[float]:
    """Return best and last results whose names end with the words of a name in the file's name."""
    wanted = tuple(word for word in metric_tokens(name) if word != "best")
    state = subject.training
    numbers = {**state.metrics, **state.best}
    return [
        float(value)
        for address, stated in numbers.items()
        if (value := number(stated)) is not None
        and wanted
        and (measured(name) == measured(address) or _words(address)[-len(wanted) :] == wanted)
    ]


def _words(address: str) -> tuple[str, ...]:
    """Split a key path into words as in file names: ``val_stats/loss`` is ``val_loss`` there."""
    dropped = {"stats", "metrics", "results"}
    return tuple(word for word in metric_tokens(address) if word not in dropped)


CHECKS = (
    Check(("CK513",), _progress),
    Check(("CK514",), _best),
    Check(("CK515",), _best_present),
    Check(("CK516",), _patience),
    Check(("CK517",), _exchanged),
    Check(("CK518",), _file_name),
    Check(("CK519",), _model),
)

"""CK501-CK509, CK520-CK524: checks that optimizer, scheduler and scaler continue the run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from ckptool.checks import moments
from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, an_optimizer
from ckptool.checks.moments import any_value, readable_moments
from ckptool.checks.parts import (
    counters_of,
    excused,
    facts_of,
    is_called_scheduler,
    is_scaler,
    number,
    optimizers_of,
    parts,
    schedulers_of,
    steps_of,
)
from ckptool.checks.settings import float16_setting, has_scaler, settings_in
from ckptool.contents.optimizers import OptimizerState
from ckptool.contents.training import StepCounter
from ckptool.names import says, whole
from ckptool.regex import regex
from ckptool.reports.rules import finding
from ckptool.tensors.sample import scalar_value
from ckptool.tree.addresses import format_address
from ckptool.tree.describing import named
from ckptool.tree.nodes import Address, Tree, fields_of

WARM_UP = whole("warmup", "warm_up")
SAME_RATE = 1e-6  # relative


def _scheduler_present(subject: Subject) -> Verdicts:
    if stored_schedulers(subject):
        return
    excuse = excused(subject, "scheduler", "CK507")
    if excuse is None and subject.inventory.optimizers and not was_scheduled(subject):
        reason = "no scheduler of torch drove the optimizer: its groups have no initial_lr"
        excuse = NotChecked("CK507", reason, is_absent=True)
    message = "the file holds no scheduler's state (last_epoch, _last_lr)"
    if was_scheduled(subject):
        message += ", but a scheduler set the optimizer's rates: its groups have initial_lr"
    yield excuse or finding("CK507", "", message)


def stored_schedulers(subject: Subject) -> list[Address]:
    """Return the key paths of the schedulers' states, by form or else by name."""
    tree = subject.checkpoint.tree
    by_form = [address for address, _ in schedulers_of(tree)]
    return by_form or [at for at, node in parts(tree) if is_called_scheduler(at, node)]


def was_scheduled(subject: Subject) -> bool:
    """Return whether a scheduler drove an optimizer: it writes ``initial_lr`` into the groups."""
    return any("initial_lr" in group for o in optimizers_of(subject) for group in o.groups)


def _rates(subject: Subject) -> Verdicts:
    """Compare schedulers' rates with optimizers'.

    If an optimizer has several schedulers, the last one to step has set its rate.
    """
    reader = subject.checkpoint.reader
    ours = [(o, _group_rates(subject, o)) for o in optimizers_of(subject)]
    tree = subject.checkpoint.tree
    stated = {
        address: [number(scalar_value(reader, rate)) for rate in last]
        for address, fields in schedulers_of(tree)
        if isinstance(last := fields.get("_last_lr"), list) and not _not_begun(fields)
    }
    if not stated or not ours:
        yield NotChecked("CK508", "no scheduler that states its last rate", is_absent=True)
        return
    if any(says(str(address[-1]), WARM_UP) for address, _ in parts(tree)):
        yield NotChecked("CK508", "a warm-up changes the rates that the scheduler sets")
        return
    wrong = {
        address: rates
        for address, rates in stated.items()
        if not any(_same(rates, theirs, by_name=o.is_flat) for o, theirs in ours)
    }
    if len(stated) > len(ours) and len(wrong) < len(stated):
        return
    for address, rates in wrong.items():
        message = f"its last rates are {_written(rates)}, the optimizer's "
        theirs = " or ".join(_written(rates) for _, rates in ours)
        yield finding("CK508", format_address(address), message + theirs)


def _not_begun(fields: dict[Any, Any]) -> bool:
    """Return whether a scheduler has not stepped yet: until then a loop may warm up by hand."""
    return fields.get("last_epoch") == 0 and fields.get("_step_count") in {0, 1, None}


Rates = list[float | None]


def _group_rates(subject: Subject, optimizer: OptimizerState) -> Rates:
    reader = subject.checkpoint.reader
    return [number(scalar_value(reader, group.get("lr"))) for group in optimizer.groups]


def _same(one: Rates, other: Rates, *, by_name: bool) -> bool:
    """Return whether the rates match by group; groups may have been added since the last step."""
    if by_name:  # a rate for each parameter, in another order
        return all(any(_close(a, b) for b in other) for a in one) and all(
            any(_close(a, b) for a in one) for b in other
        )
    return bool(one) and all(_close(a, b) for a, b in zip(one, other, strict=False))


def _close(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and math.isclose(a, b, rel_tol=SAME_RATE)


def _written(rates: Rates) -> str:
    shown = dict.fromkeys("?" if rate is None else f"{rate:g}" for rate in rates)
    return ", ".join(list(shown)[:4])


def _scalers(subject: Subject) -> Verdicts:
    found = [(at, node) for at, node in parts(subject.checkpoint.tree) if is_scaler(node)]
    for address, node in found:
        scale = number(scalar_value(subject.checkpoint.reader, fields_of(node)["scale"]))
        if scale is None or not math.isfinite(scale) or scale <= 0:
            message = f"the scale is {_written([scale])}"
            yield finding("CK509", format_address(address), message)
    if not found:
        yield NotChecked("CK509", "there is no gradient scaler in use", is_absent=True)


def _scaler_present(subject: Subject) -> Verdicts:
    """Report a float16 run without its gradient scaler; a bfloat16 run has none."""
    setting = float16_setting(subject) if subject.inventory.optimizers else None
    if setting is None:
        yield NotChecked("CK524", "no settings of a run in float16 were found", is_absent=True)
    elif not has_scaler(subject):
        message = f"{setting} says that the run uses float16, but no state of a gradient scaler"
        yield finding("CK524", "", f"{message} is stored")


# -------------------------------------------------------------------------------------------- steps


MAX_BEHIND = 64  # batches that make one optimizer step, at most
MAX_UPDATES = 400  # optimizer steps in one iteration, at most
# Counters of the whole run, and counters that may begin anew in each epoch.
GLOBAL = frozenset({"global_step", "global_steps", "global_iteration"})
MAYBE_WITHIN = frozenset({
    "step", "iter", "iteration", "n_iter", "current_step", "train_step", "current_iter",
    "current_iteration", "iterations", "cur_iter", "batch",
})  # fmt: skip
ACCUMULATION = regex(r"accum", re.IGNORECASE)


def _steps(subject: Subject) -> Verdicts:
    """Report an optimizer ahead of the run; it may lag behind it (accumulation)."""
    counters = counters_of(subject)
    counts = {o.address: steps_of(subject, o) for o in optimizers_of(subject)}
    made = {address: max(values) for address, values in counts.items() if values}
    if not counters or not made:
        lacks = "steps of the optimizer" if counters else "the run's step"
        yield NotChecked("CK506", f"the file does not state {lacks}", is_absent=True)
        return
    address, steps = min(made.items(), key=lambda item: item[1])  # several optimizers take turns
    done = max(counters, key=lambda each: each.value)
    if not _may_have_made(steps, done, facts_of(subject).get("epoch")):
        message = f"it has made {steps:g} steps, but the run {done.value:g} ({done.name})"
        yield finding("CK506", format_address(address), message)


def _may_have_made(steps: float, done: StepCounter, epoch: float | None) -> bool:
    """Return whether so many optimizer steps fit a counter, which may count from zero."""
    if steps <= done.value + 1:
        return True
    if done.name in GLOBAL:
        return False
    epochs = epoch if epoch is not None and done.name in MAYBE_WITHIN else 0
    if epochs >= 1 and steps >= epochs * done.value:
        return True  # the counter begins anew in each epoch
    # One iteration may be several updates: minibatches of PPO, steps of a critic.
    return any(
        n > 1 and steps % n == 0 and 2 <= steps // n <= MAX_UPDATES
        for n in (done.value, done.value + 1)
    )


def _reset(subject: Subject) -> Verdicts:
    """Report a step count that was lost, while the moments or the scheduler went on."""
    looked = False
    optimizers = [(o, steps_of(subject, o)) for o in optimizers_of(subject)]
    most = max((n for _, counts in optimizers for n in counts), default=0)
    scheduled = _of_scheduler(subject)
    for optimizer, counts in optimizers:
        moments = readable_moments(optimizer)
        if not counts or not moments:
            continue
        looked = True
        where = format_address(optimizer.address)
        if not max(counts) and any_value(subject.checkpoint.reader, moments):
            yield finding("CK522", where, "its step count is 0, but its moments are not zero")
        elif max(counts) == most and scheduled > most * MAX_BEHIND:
            message = f"it has made {most:g} steps, but the run and its scheduler {scheduled:g}"
            yield finding("CK522", where, message)
    if not looked:
        yield NotChecked("CK522", "the optimizer keeps no count of steps", is_absent=True)


def _of_scheduler(subject: Subject) -> float:
    """Return the steps of a scheduler whose count is the run's, within 1; 0 without one."""
    run = max((each.value for each in counters_of(subject)), default=0)
    made = [count for _, count in scheduler_steps(subject)]
    return next((count for count in made if abs(count - run) <= 1), 0)


def scheduler_steps(subject: Subject) -> list[tuple[Address, float]]:
    """Return how often each scheduler has stepped, if that is a finite number."""
    found = schedulers_of(subject.checkpoint.tree)
    stated = ((address, number(fields.get("last_epoch"))) for address, fields in found)
    return [(at, count) for at, count in stated if count is not None and math.isfinite(count)]


def _ahead(subject: Subject) -> Verdicts:
    """Report a scheduler ahead of the run.

    A scheduler steps once an epoch, once a step of the run, or once a step and process.
    """
    counters, steps = counters_of(subject), scheduler_steps(subject)
    if not counters or not steps:
        lacks = "the run's step" if steps else "steps of a scheduler"
        yield NotChecked("CK523", f"the file does not state {lacks}", is_absent=True)
        return
    epoch = facts_of(subject).get("epoch")
    made = [n for o in optimizers_of(subject) for n in steps_of(subject, o)]
    known = [*made, *(each.value for each in counters), epoch or 0]
    if accumulates(subject):
        yield NotChecked("CK523", "several batches make a step of the optimizer", is_absent=True)
        return
    for address, count in steps:
        is_told = count <= max(known) + 1 or _in_step(count, known)
        if not is_told and not any(_may_have_made(count, each, epoch) for each in counters):
            message = f"it has made {count:g} steps, but the run {max(known):g}"
            yield finding("CK523", format_address(address), message)


def _in_step(count: float, known: Sequence[float]) -> bool:
    """Return whether the scheduler's count is a plausible multiple of the largest other count.

    It is one if the scheduler stepped once for each process (accelerate), or if the other counter
    counts epochs. Only one of the two counts the steps that a gradient scaler skipped.
    """
    most = max(known)
    return any(
        (ways := round(count / n)) >= 2
        and (ways in {2, 4} or ways % 8 == 0)
        and abs(count - ways * n) <= ways
        for n in (most, most + 1)
        if n > 0
    )


def accumulates(subject: Subject) -> bool:
    """Return whether the settings state that several batches make one optimizer step."""
    return any(
        ACCUMULATION.search(key) and (n := number(value)) is not None and n > 1
        for _, fields in settings_in(subject.checkpoint.tree)
        for key, value in fields.items()
    )


# ------------------------------------------------------------------------------------------- states


def _present(subject: Subject) -> Verdicts:
    if not subject.inventory.optimizers:
        message = "the file holds no optimizer's state: param_groups and state"
        yield excused(subject, "optimizer", "CK501") or finding("CK501", "", message)


def _begun(subject: Subject) -> float | None:
    """Return the number of steps done, else of epochs; None if the file does not state it.

    An epoch of 1 may be the first one, just begun, so it counts as not stated. Steps in an
    environment come before the first update of an agent that collects experience at first.
    """
    facts = facts_of(subject)
    if _awaits_first_update(subject.checkpoint.tree):
        return 0
    if "global_step" in facts:
        return facts["global_step"]
    return None if facts.get("epoch") == 1 else facts.get("epoch")


UPDATE_COUNTS = ("_n_updates", "n_updates")  # of stable-baselines3


def _awaits_first_update(tree: Tree) -> bool:
    """Return whether the file, or one of its parts, counts no update of the weights yet."""
    parts = (tree, *tree.values()) if isinstance(tree, dict) else ()
    counts = [
        part[n] for part in parts if isinstance(part, dict) for n in UPDATE_COUNTS if n in part
    ]
    return bool(counts) and all(type(count) is int and count == 0 for count in counts)


def _empty(subject: Subject) -> Verdicts:
    begun = _begun(subject)
    optimizers = optimizers_of(subject)
    for optimizer in optimizers:
        if not optimizer.parameters or optimizer.states or not optimizer.has_momentum:
            continue
        if any(other.states for other in optimizers):
            reason = "one of several optimizers is empty: it may not have had its turn"
            yield NotChecked("CK502", reason, is_absent=True)
        elif begun is None:
            yield NotChecked("CK502", "it is empty, and the file does not say if training began")
        elif begun > 0:
            message = f"no state for any of its {len(optimizer.parameters)} parameters"
            yield finding("CK502", format_address(optimizer.address), message)


def _states(subject: Subject) -> Verdicts:
    """Report parameters without a state, and states without a parameter."""
    for optimizer in optimizers_of(subject):
        known = dict.fromkeys(optimizer.parameters)
        without = [str(p) for p in known if p not in optimizer.states]
        orphans = [str(p) for p in optimizer.states if p not in known]
        where = format_address(optimizer.address)
        if optimizer.states and without:
            message = f"{len(without)} of its {len(known)} parameters have no state"
            yield finding("CK503", where, f"{message}: {named(without)}")
        if known and orphans:
            message = f"{len(orphans)} of {len(optimizer.states)} states belong to no parameter"
            yield finding("CK520", where, f"{message}: {named(orphans)}")


CHECKS = (
    Check(("CK501",), _present),
    Check(("CK502",), _empty, (an_optimizer,)),
    Check(("CK503", "CK520"), _states, (an_optimizer,)),
    *moments.CHECKS,
    Check(("CK506",), _steps, (an_optimizer,)),
    Check(("CK507",), _scheduler_present),
    Check(("CK508",), _rates),
    Check(("CK509",), _scalers),
    Check(("CK522",), _reset, (an_optimizer,)),
    Check(("CK523",), _ahead),
    Check(("CK524",), _scaler_present),
)

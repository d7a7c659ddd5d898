"""CK50x: whether optimizer, scheduler and scaler go on from where the weights are.

Parameters have no names in an optimizer's state, only positions, so the state is held against the
weights by shape: every moment must be as large as some tensor of the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, an_optimizer
from ckptool.checks.container import named
from ckptool.checks.parts import (
    OptimizerState,
    facts_of,
    fields_of,
    is_scaler,
    is_scheduler,
    number,
    optimizers_of,
    parts,
)
from ckptool.evidence import beginning, is_readable, scalar_value, spread
from ckptool.rules import finding
from ckptool.tree import TensorRef, format_address

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_inf")
BUFFERS = ("running_mean", "running_var")  # floating, and no parameters
SAMPLED = 16  # moments looked at
SAME_RATE = 1e-6  # relative
IN_TURN = "_schedulers"  # those within a SequentialLR, whose rates are of the last time it was on


def _present(subject: Subject) -> Verdicts:
    if not subject.inventory.optimizers:
        yield finding("CK501", "", "the file holds no optimizer's state: param_groups and state")


def _begun(subject: Subject) -> float | None:
    """How far training was, in whatever it counts; None: the file does not say."""
    return max(facts_of(subject).values(), default=None)


def _empty(subject: Subject) -> Verdicts:
    begun = _begun(subject)
    for optimizer in optimizers_of(subject):
        if not optimizer.parameters or optimizer.states or not optimizer.has_momentum:
            continue
        if begun is None:
            yield NotChecked("CK502", "it is empty, and the file does not say if training began")
        elif begun > 0:
            message = f"no state for any of its {len(optimizer.parameters)} parameters"
            yield finding("CK502", format_address(optimizer.address), message)


def _states(subject: Subject) -> Verdicts:
    """One state for each parameter, and none besides."""
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


def _shapes(subject: Subject) -> Verdicts:
    """The moments against the weights: by position where they line up, else by shape."""
    shapes = Counter(ref.shape for ref in subject.weight_tensors.values() if ref.dtype.is_floating)
    if not shapes:
        for rule in ("CK504", "CK521"):
            yield NotChecked(rule, "there are no weights to hold it against", is_absent=True)
        return
    if not any(map(_moment, states_of(subject))):
        yield NotChecked("CK504", "the optimizer keeps no moments", is_absent=True)
    weights, own = _trained(subject), _shapes_beside_averages(subject)
    for optimizer in optimizers_of(subject):
        yield from _torn(optimizer)
        where = format_address(optimizer.address)
        moments = {key: _moment(state) for key, state in optimizer.states.items()}
        wanted = Counter(ref.shape for ref in moments.values() if ref is not None)
        is_whole = len(weights) == len(optimizer.parameters)
        strange = list((wanted - (own if is_whole else shapes)).elements())
        has_order = is_whole and len(optimizer.groups) == 1
        line = dict(zip(optimizer.parameters, weights, strict=True)) if has_order else {}
        wrong = [
            f"{name} {list(shape)}"
            for parameter, (name, shape) in line.items()
            if (ref := moments.get(parameter)) is not None and ref.shape != shape
        ]
        if wrong and strange:
            message = f"{len(wrong)} of {wanted.total()} moments have another shape than their"
            yield finding("CK504", where, f"{message} weight: {named(wrong)}")
        elif strange and (is_whole or len(strange) * 2 > wanted.total()):
            # An optimizer of more or fewer may also be of what is not saved here.
            found = named([str(list(shape)) for shape in strange])
            message = f"{len(strange)} of {wanted.total()} moments have shapes that no weight has"
            yield finding("CK504", where, f"{message}: {found}")
        if len(optimizer.parameters) > shapes.total():
            message = f"{len(optimizer.parameters)} parameters, but {shapes.total()} weights"
            yield finding("CK521", where, message)


def _shapes_beside_averages(subject: Subject) -> Counter[tuple[int, ...]]:
    """Of all weights but averages, which may be of an earlier version of the model."""
    model = subject.location.model
    averages = {id(c.table.node) for c in subject.averages} - {id(model.node) if model else 0}
    tables = [table for table in subject.inventory.weights if id(table.node) not in averages]
    return Counter(ref.shape for table in tables for ref in table.tensors.values())


def _trained(subject: Subject) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of what a loop gives to its optimizer as a rule: the model's parameters."""
    model = subject.location.model
    tensors = {} if model is None else model.tensors
    return [
        (name, ref.shape)
        for name, ref in tensors.items()
        if ref.dtype.is_floating and not name.endswith(BUFFERS)
    ]


def _torn(optimizer: OptimizerState) -> Verdicts:
    """Moments of one parameter that are of two sizes.

    Some optimizers keep a number or a row where others keep a moment: that fits.
    """
    for parameter, state in optimizer.states.items():
        moments = [(n, ref) for n in MOMENTS if isinstance(ref := state.get(n), TensorRef)]
        for (name, one), (other_name, other) in pairwise(moments):
            if not _fit(one.shape, other.shape):
                where = format_address((*optimizer.address, "state", parameter))
                shapes = f"{name} is {list(one.shape)}, {other_name} {list(other.shape)}"
                yield finding("CK504", where, shapes)


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    sizes = zip(one, other, strict=False)
    return len(one) != len(other) or all(a == b or 1 in {a, b} for a, b in sizes)


def states_of(subject: Subject) -> Iterator[dict[Any, Any]]:
    """The states of all parameters of all optimizers."""
    return (state for optimizer in optimizers_of(subject) for state in optimizer.states.values())


def _moment(state: dict[Any, Any]) -> TensorRef | None:
    refs = (state.get(name) for name in MOMENTS)
    return next((ref for ref in refs if isinstance(ref, TensorRef)), None)


def _zero(subject: Subject) -> Verdicts:
    looked = False
    for optimizer in optimizers_of(subject):
        moments = [
            ref
            for state in optimizer.states.values()
            for name in MOMENTS
            if isinstance(ref := state.get(name), TensorRef) and is_readable(ref)
        ]
        sample = spread(moments, SAMPLED)
        looked = looked or bool(sample)
        if sample and not any(any(beginning(subject.checkpoint.reader, r)) for r in sample):
            message = f"all of {len(sample)} moments that were looked at are zero"
            yield finding("CK505", format_address(optimizer.address), message)
    if not looked:
        yield NotChecked("CK505", "the optimizer keeps no moments", is_absent=True)


def _steps(subject: Subject) -> Verdicts:
    """An optimizer may lag behind the run (accumulation), but not be ahead of it."""
    done = facts_of(subject).get("global_step")
    counts = {o.address: _counts(subject, o) for o in optimizers_of(subject)}
    made = {address: max(values) for address, values in counts.items() if values}
    if done is None or not made:
        lacks = "the run's step" if done is None else "steps of the optimizer"
        yield NotChecked("CK506", f"the file does not state {lacks}", is_absent=True)
    elif min(made.values()) > done:  # several optimizers take turns
        address, steps = min(made.items(), key=lambda item: item[1])
        message = f"it has made {steps:g} steps, but the run {done:g}"
        yield finding("CK506", format_address(address), message)


def _counts(subject: Subject, optimizer: OptimizerState) -> list[float]:
    values = [state.get("step") for state in optimizer.states.values()]
    numbers = (number(scalar_value(subject.checkpoint.reader, value)) for value in values)
    return [n for n in numbers if n is not None]


# ----------------------------------------------------------------------------- scheduler and scaler


def _scheduler_present(subject: Subject) -> Verdicts:
    tree = subject.checkpoint.tree
    if not any(is_scheduler(node) or "sched" in str(at[-1]).lower() for at, node in parts(tree)):
        yield finding("CK507", "", "the file holds no scheduler's state: last_epoch, _last_lr")


def _rates(subject: Subject) -> Verdicts:
    ours = [_group_rates(subject, o) for o in optimizers_of(subject)]
    looked = False
    for address, node in parts(subject.checkpoint.tree):
        is_own = is_scheduler(node) and IN_TURN not in address
        last = fields_of(node).get("_last_lr") if is_own else None
        if isinstance(last, list) and ours:
            looked = True
            rates = [number(scalar_value(subject.checkpoint.reader, rate)) for rate in last]
            if not any(_same(rates, theirs) for theirs in ours):
                message = f"its last rates are {_written(rates)}, the optimizer's "
                where = format_address(address)
                yield finding("CK508", where, message + " or ".join(map(_written, ours)))
    if not looked:
        yield NotChecked("CK508", "no scheduler that states its last rate", is_absent=True)


Rates = list[float | None]


def _group_rates(subject: Subject, optimizer: OptimizerState) -> Rates:
    reader = subject.checkpoint.reader
    return [number(scalar_value(reader, group.get("lr"))) for group in optimizer.groups]


def _same(one: Rates, other: Rates) -> bool:
    return len(one) == len(other) and all(
        a is not None and b is not None and math.isclose(a, b, rel_tol=SAME_RATE)
        for a, b in zip(one, other, strict=True)
    )


def _written(rates: Rates) -> str:
    return ", ".join("?" if rate is None else f"{rate:g}" for rate in rates[:4])


def _scalers(subject: Subject) -> Verdicts:
    found = [(at, node) for at, node in parts(subject.checkpoint.tree) if is_scaler(node)]
    for address, node in found:
        yield from _scaler(subject, format_address(address), node)
    if not found:
        yield NotChecked("CK509", "there is no gradient scaler in use", is_absent=True)


def _scaler(subject: Subject, where: str, node: Any) -> Iterator[Any]:
    scale = number(scalar_value(subject.checkpoint.reader, fields_of(node)["scale"]))
    if scale is None or not math.isfinite(scale) or scale <= 0:
        yield finding("CK509", where, f"the scale is {_written([scale])}")


CHECKS = (
    Check(("CK501",), _present),
    Check(("CK502",), _empty, (an_optimizer,)),
    Check(("CK503", "CK520"), _states, (an_optimizer,)),
    Check(("CK504", "CK521"), _shapes, (an_optimizer,)),
    Check(("CK505",), _zero, (an_optimizer,)),
    Check(("CK506",), _steps, (an_optimizer,)),
    Check(("CK507",), _scheduler_present),
    Check(("CK508",), _rates),
    Check(("CK509",), _scalers),
)

"""The parts of a training state by their form: optimizers, schedulers, scalers.

Scripts name them as they please, and sometimes wrongly. The keys of a part show what it *is*.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from ckptool.checks.base import NotChecked, Subject, once
from ckptool.contents.inventory import is_optimizer, is_state_dict
from ckptool.contents.optimizers import OptimizerState, read_optimizers
from ckptool.contents.trainers import PARTS, Trainer, is_there, trainer_of
from ckptool.contents.training import StepCounter, step_counters
from ckptool.contents.walks import ByLevel
from ckptool.names import says, whole
from ckptool.regex import regex
from ckptool.tensors.sample import scalar_value
from ckptool.tree.nodes import Address, Opaque, Tree, fields_of, is_container, is_real
from ckptool.tree.walking import children

SETTINGS = regex(r"args|config|cfg|hparams|hyper_parameters", re.IGNORECASE)
SCHEDULER = whole("sched", "scheduler", "lrsched", "lrscheduler")
MAX_BITS = 1000  # bits of an integer; floats end at 1024
MAX_DEPTH = 4  # levels below the top
MAX_CHILDREN = 1_000  # visited in a container: lists of training states are no longer


def number(value: Any) -> float | None:
    """Return the value if it is a number; None for flags, texts and integers beyond all floats."""
    is_huge = isinstance(value, int) and value.bit_length() > MAX_BITS
    return value if is_real(value) and not is_huge else None


def facts_of(subject: Subject) -> dict[str, float]:
    """Return epoch and step, where they are finite numbers."""
    stated = {name: number(value) for name, value in subject.training.facts.items()}
    return {n: value for n, value in stated.items() if value is not None and math.isfinite(value)}


@once
def counters_of(subject: Subject) -> list[StepCounter]:
    """Return all counters of the run's steps whose values are finite numbers."""
    stated = step_counters(subject.checkpoint.tree, subject.checkpoint.reader)
    return [each for each in stated if (n := number(each.value)) is not None and math.isfinite(n)]


@once
def trainer(subject: Subject) -> Trainer:
    """Return the trainer that wrote the checkpoint."""
    return trainer_of(subject.checkpoint.tree)


def excused(subject: Subject, part: str, rule: str) -> NotChecked | None:
    """Return why a rule does not ask for a part: no checkpoint of this trainer has it."""
    row = trainer(subject)
    if part in row.own and is_there(subject.checkpoint.tree, row.own[part]):
        return NotChecked(rule, f"{row.name} stores {PARTS[part]} in its own form", is_absent=True)
    if part in row.never or part in row.remade:
        return NotChecked(rule, f"{row.name} never stores {PARTS[part]}", is_absent=True)
    return None


@once
def optimizers_of(subject: Subject) -> list[OptimizerState]:
    """Return all optimizers in the file, pickled whole or stored as a state dict."""
    return read_optimizers(subject.inventory)


def steps_of(subject: Subject, optimizer: OptimizerState) -> list[float]:
    """Return the finite step counts that an optimizer keeps for its parameters."""
    return _steps(subject)[optimizer.address]


@once
def _steps(subject: Subject) -> dict[Address, list[float]]:
    found = {}
    for optimizer in optimizers_of(subject):
        values = (state.get("step") for state in optimizer.states.values())
        numbers = (number(scalar_value(subject.checkpoint.reader, value)) for value in values)
        found[optimizer.address] = [n for n in numbers if n is not None and math.isfinite(n)]
    return found


def is_scheduler(node: Tree) -> bool:
    """Return whether a node is the state of one of torch's learning-rate schedulers."""
    fields = fields_of(node)
    return (
        "last_epoch" in fields
        and not is_optimizer(node)
        and bool({"_step_count", "base_lrs", "_last_lr", "num_bad_epochs"} & fields.keys())
    )


def is_called_scheduler(address: Address, node: Tree) -> bool:
    """Return whether a part has a scheduler's name and is not in the settings."""
    *around, name = map(str, address)
    is_setting = any(SETTINGS.search(key) for key in around)
    is_member = isinstance(node, Opaque) and node.called  # of an enum: SchedulerType('linear')
    return says(name, SCHEDULER) and not is_setting and not is_member


def is_scaler(node: Tree) -> bool:
    """Return whether a node is the state of a GradScaler."""
    fields = fields_of(node)
    return "scale" in fields and bool({"growth_factor", "_growth_tracker"} & fields.keys())


def parts(tree: Tree) -> Iterator[tuple[Address, Tree]]:
    """Yield the containers down to ``MAX_DEPTH``; do not enter weights or optimizers."""
    walk = ByLevel[tuple[Address, Tree]](MAX_DEPTH, ((), tree))
    for address, node in walk:
        if is_optimizer(node) or is_state_dict(node):
            continue
        for key, child in children(node)[:MAX_CHILDREN]:
            if is_container(child):
                yield (*address, key), child
                walk.enter((*address, key), child)


def schedulers_of(tree: Tree) -> list[tuple[Address, dict[Any, Any]]]:
    """Return the schedulers that a training loop steps, without those within another one."""
    found: list[tuple[Address, Tree]] = [((), tree)] if is_scheduler(tree) else []
    found += [(address, node) for address, node in parts(tree) if is_scheduler(node)]
    places = {address for address, _ in found}
    return [
        (address, fields_of(node))
        for address, node in found
        if not any(address[:depth] in places for depth in range(len(address)))
    ]


def name_of(address: Address) -> str:
    """Return the last key that is a word: the elements of a list have the list's name."""
    return next((key.lower() for key in reversed(address) if isinstance(key, str)), "")

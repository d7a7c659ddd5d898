"""The parts of a training state by their form: optimizers, schedulers, scalers.

Scripts name them as they please, and sometimes wrongly; what a part *is* shows in its keys.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from ckptool.checks.base import Subject
from ckptool.inventory import is_optimizer, is_state_dict
from ckptool.tree import Address, Opaque, Tree, children, is_container, unseen

MAX_BITS = 1000  # of an integer; floats end at 1024
MAX_DEPTH = 4  # levels below the top
MAX_CHILDREN = 1_000  # of a container that is entered: training states are no longer lists


class OptimizerState(NamedTuple):
    """The state of one optimizer."""

    address: Address
    states: dict[Any, dict[Any, Any]]  # by parameter
    groups: tuple[dict[Any, Any], ...]
    parameters: tuple[Any, ...]  # ids of all groups, in order

    @property
    def has_momentum(self) -> bool:
        """Whether its settings call for a state for each parameter."""
        return any("betas" in g or g.get("momentum") or "rho" in g for g in self.groups)


def number(value: Any) -> float | None:
    """A value that arithmetic can take; None for flags, texts and integers beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return None if isinstance(value, int) and value.bit_length() > MAX_BITS else value


def facts_of(subject: Subject) -> dict[str, float]:
    """Epoch and step, where they are finite numbers."""
    stated = {name: number(value) for name, value in subject.training.facts.items()}
    return {n: value for n, value in stated.items() if value is not None and math.isfinite(value)}


def fields_of(node: Tree) -> dict[Any, Any]:
    """The keys of a dict, or the attributes of an object."""
    fields = node.attributes if isinstance(node, Opaque) else node
    return fields if isinstance(fields, dict) else {}


def optimizers_of(subject: Subject) -> list[OptimizerState]:
    """Every optimizer in the file, pickled whole or as its state dict."""
    found = []
    for address, node in subject.inventory.optimizers.items():
        fields = fields_of(node)
        groups = fields["param_groups"]
        plain = tuple(g for g in groups if isinstance(g, dict)) if _is_list(groups) else ()
        parameters = tuple(p for g in plain if _is_list(g.get("params")) for p in g["params"])
        states = fields["state"] if isinstance(fields["state"], dict) else {}
        by_parameter = {key: state for key, state in states.items() if isinstance(state, dict)}
        found.append(OptimizerState(address, by_parameter, plain, parameters))
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def is_scheduler(node: Tree) -> bool:
    """Whether a node is the state of a learning-rate scheduler of torch's."""
    fields = fields_of(node)
    return (
        "last_epoch" in fields
        and not is_optimizer(node)
        and bool({"_step_count", "base_lrs", "_last_lr", "num_bad_epochs"} & fields.keys())
    )


def is_scaler(node: Tree) -> bool:
    """Whether a node is the state of a GradScaler."""
    fields = fields_of(node)
    return "scale" in fields and bool({"growth_factor", "_growth_tracker"} & fields.keys())


def parts(tree: Tree) -> Iterator[tuple[Address, Tree]]:
    """Containers down to ``MAX_DEPTH``; weights and the insides of optimizers are not entered."""
    level: list[tuple[Address, Tree]] = [((), tree)]
    seen: set[Hashable] = set()
    for _ in range(MAX_DEPTH):
        inner: list[tuple[Address, Tree]] = []
        for address, node in unseen(level, seen):
            if is_optimizer(node) or is_state_dict(node):
                continue
            for key, child in children(node)[:MAX_CHILDREN]:
                if is_container(child):
                    yield (*address, key), child
                    inner.append(((*address, key), child))
        level = inner


def name_of(address: Address) -> str:
    """The last key that is a word: the elements of a list are called like the list."""
    return next((key.lower() for key in reversed(address) if isinstance(key, str)), "")

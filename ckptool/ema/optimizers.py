"""Optimizers that average weights, and the state from which their averages follow.

These averages are no state dicts, so they are reported and not taken. ASGD keeps the average of
each parameter in its state. Schedule-Free stores no averages; they follow from the weights and the
state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptool.records import NamedTuple
from ckptool.tree.nodes import TensorRef, Tree, fields_of


class AveragingOptimizer(NamedTuple):
    """An optimizer that averages, recognized by a tensor in the state of its parameters."""

    kind: str
    key: str  # of the tensor in the state of each parameter
    setting: str | None  # key in param_groups that must be there
    why: str

    def parts(self, optimizer: Tree) -> Iterator[TensorRef]:
        """Yield the tensors under ``key``; nothing if this is another optimizer."""
        if self.setting is not None and self.setting not in self.settings(optimizer):
            return
        for state in _states(optimizer):
            if isinstance(state, dict) and isinstance(ref := state.get(self.key), TensorRef):
                yield ref

    def settings(self, optimizer: Tree) -> dict[str, Any]:
        """Return the settings of the average in the first parameter group."""
        groups = fields_of(optimizer).get("param_groups")
        group = groups[0] if isinstance(groups, list) and groups else {}
        shown = (self.setting, "betas", "lambd", "alpha", "t0")
        return {
            key: group[key] for key in shown if key and isinstance(group, dict) and key in group
        }


OPTIMIZERS = (
    # https://github.com/facebookresearch/schedule_free: x = y + (z - y) * (1 - 1 / beta1)
    AveragingOptimizer(
        "schedule-free",
        "z",
        "train_mode",
        "the averaged point follows from the weights y and the optimizer's z: "
        "x = y + (z - y)(1 - 1/beta1); call optimizer.eval() before saving",
    ),
    # torch.optim.ASGD: https://docs.pytorch.org/docs/stable/generated/torch.optim.ASGD.html
    AveragingOptimizer(
        "asgd", "ax", "lambd", "ASGD keeps the average of each parameter in its state as ax"
    ),
)


def group_sizes(neighbour: Tree) -> tuple[int, ...]:
    """Return the sizes of the parameter groups of an optimizer: NeMo lists an EMA in that order."""
    for part in fields_of(neighbour).values():
        groups = fields_of(part).get("param_groups")
        if isinstance(groups, list) and all(isinstance(g, dict) for g in groups):
            sizes = [g.get("params") for g in groups]
            return tuple(len(params) for params in sizes if isinstance(params, list))
    return ()


def train_mode(optimizer: Tree) -> bool | None:
    """Return whether a Schedule-Free optimizer was saved in training mode; None for others."""
    mode = OPTIMIZERS[0].settings(optimizer).get("train_mode")
    return mode if isinstance(mode, bool) else None


def _states(optimizer: Tree) -> list[Any]:
    state = fields_of(optimizer).get("state")
    return list(state.values()) if isinstance(state, dict) else []

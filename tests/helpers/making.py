"""Checkpoints for one test each: weights, an average near them, and what trainers save beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def weights(**more: Tensor) -> Weights:
    """A small state dict with a buffer of integers; ``more`` tensors are added."""
    generator = torch.Generator().manual_seed(3)
    plain = {
        "stem.weight": torch.randn(4, 3, generator=generator),
        "stem.bias": torch.randn(4, generator=generator),
        "head.weight": torch.randn(2, 4, generator=generator),
        "scale": torch.tensor(1.5),
        "steps": torch.tensor(12),
    }
    return plain | more


def average_of(model: Mapping[str, Tensor]) -> Weights:
    """Values near the model's: an average of what it was. Ties and strides are not kept."""
    return {
        name: tensor * 0.9 + 0.01 if tensor.is_floating_point() else tensor.clone()
        for name, tensor in model.items()
    }


def floats_to(state: Mapping[str, Tensor], dtype: torch.dtype) -> Weights:
    """The state with its floating-point tensors in another type."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}


def save(path: Path, model: Mapping[str, Tensor], ema: Any = None, **more: Any) -> Path:
    """A checkpoint with ``state_dict`` and ``ema_state_dict``, and what else is given."""
    average = average_of(model) if ema is None else ema
    torch.save({"state_dict": dict(model), "ema_state_dict": average, **more}, path)
    return path


def resumable(model: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a trainer needs to go on: the state of Adam, epoch, random states."""
    floating = [tensor for tensor in model.values() if tensor.is_floating_point()]
    state = {
        index: {"step": torch.tensor(700.0), "exp_avg": tensor * 0.1, "exp_avg_sq": tensor**2}
        for index, tensor in enumerate(floating)
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "params": list(state)}
    return {
        "optimizer": {"state": state, "param_groups": [group]},
        "epoch": 7,
        "global_step": 700,
        "rng_state": torch.Generator().manual_seed(1).get_state(),
    }

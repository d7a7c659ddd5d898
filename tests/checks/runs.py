"""A real little training run, with everything that a trainer saves: what the rules are tried on."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DECAY = 0.6
STEPS_AN_EPOCH = 5
NAME = "checkpoint_e004.pth"


class Net(nn.Module):
    """Convolution, BatchNorm with its integer counter, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.stem(x))).mean(-1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The three generators from ``seed`` on, and afterwards where they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def trained(epochs: int = 4, seed: int = 5) -> dict[str, Any]:
    """The state after some epochs: 14 fields to resume from, an EMA and its numbers."""
    with seeded(seed):
        return _trained(epochs)


def _trained(epochs: int) -> dict[str, Any]:
    net = Net()
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu")
    best, waited, step, stats = float("inf"), 0, 0, {}
    for _ in range(epochs):
        for _ in range(STEPS_AN_EPOCH):
            x = torch.randn(8, 2, 9) + 0.01 * float(np.random.rand()) + 0.01 * random.random()
            loss = (net(x) - x.mean((1, 2))[:, None]).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            step += 1
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value.detach(), 1 - DECAY)
                else:
                    average[name].copy_(value)
        scheduler.step()
        stats = {"loss": loss.item()}
        waited = 0 if stats["loss"] < best else waited + 1
        best = min(best, stats["loss"])
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "epoch": epochs,
        "global_step": step,
        "args": {"lr": 1e-2, "seed": 5},
        "val_stats": stats,
        "best_val_loss": best,
        "epochs_without_improvement": waited,
        "rng_state": torch.get_rng_state(),
        "cuda_rng_state": [],
        "np_rng_state": list(np.random.get_state())[:1]
        + [np.random.get_state()[1].tolist()]
        + list(np.random.get_state())[2:],
        "py_rng_state": random.getstate(),
        "has_ema": True,
        "ema_state_dict": average,
        "ema_settings": {},
        "decay": DECAY,
    }


def with_metadata(state: dict[str, Any]) -> dict[str, Any]:
    """The averages with their numbers beside them."""
    average = state.pop("ema_state_dict")
    state["ema"] = {
        "state_dict": average,
        "decay": DECAY,
        "num_updates": state["global_step"],
        "update_every": 1,
        "update_start_step": 0,
    }
    return state


def save(state: Any, folder: Path, name: str = NAME) -> Path:
    """As a trainer does."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    return folder / name


def namespace(**more: Any) -> argparse.Namespace:
    """What scripts keep their arguments in."""
    return argparse.Namespace(**more)

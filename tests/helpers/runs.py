"""A real little training run, with everything that a trainer saves: what the rules are tried on."""

from __future__ import annotations

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
State = dict[str, Any]


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
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - trainers use, and save, the global generator
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def trained(seed: int = 5) -> State:
    """The state after four epochs: all that a resume needs, an EMA and its numbers."""
    with seeded(seed):
        return _trained()


def _trained() -> State:
    net = Net()
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu")
    best, waited, step, loss = float("inf"), 0, 0, float("inf")
    for _ in range(4):
        for _ in range(STEPS_AN_EPOCH):
            loss = _step(net, optimizer, scaler)
            _update(average, net)
            step += 1
        scheduler.step()
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
    return {
        "model": net.state_dict(),
        "ema": {
            "state_dict": average,
            "decay": DECAY,
            "num_updates": step,
            "update_every": 1,
            "update_start_step": 0,
        },
        "has_ema": True,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "epoch": 4,
        "global_step": step,
        "val_stats": {"loss": loss},
        "best_val_loss": best,
        "epochs_without_improvement": waited,
        "rng_state": torch.get_rng_state(),
        "cuda_rng_state": [],
        "np_rng_state": np.random.get_state(),  # noqa: NPY002
        "py_rng_state": random.getstate(),
    }


def _step(net: Net, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> float:
    noise = 0.01 * float(np.random.rand()) + 0.01 * random.random()  # noqa: NPY002
    x = torch.randn(8, 2, 9) + noise
    loss = (net(x) - x.mean((1, 2))[:, None]).square().mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


@torch.no_grad()
def _update(average: dict[str, Tensor], net: Net) -> None:
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - DECAY)
        else:
            average[name].copy_(value)


def save(state: Any, folder: Path, name: str = NAME) -> Path:
    """As a trainer does."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    return folder / name

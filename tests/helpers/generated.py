"""Training checkpoints drawn by a seed: as trainers save them, with what they find to save."""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

NAMES = {
    "model": ("model", "state_dict", "model_state_dict", "net", "generator"),
    "ema": ("ema", "ema_state_dict", "model_ema"),
    "optimizer": ("optimizer", "optimizer_state_dict", "optim", "opt_g"),
    "scheduler": ("scheduler", "lr_scheduler", "lr_schedulers"),
}
OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop,
              torch.optim.Adagrad)  # fmt: skip
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float64)


class Net(nn.Module):
    """A few layers, maybe with tied weights."""

    def __init__(self, width: int, depth: int, *, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.body = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.embed(x))))


class Generated:
    """A checkpoint of a seed: ``content``, how it is to be saved, and the keys of its parts."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        torch.manual_seed(seed)
        draw = self._draw
        net = Net(draw.randint(2, 6), draw.randint(1, 3), tied=draw.random() < 0.4)
        net = net.to(draw.choice(DTYPES))
        optimizer = draw.choice(OPTIMIZERS)(net.parameters(), lr=draw.uniform(1e-4, 1e-2))
        scheduler = lr_scheduler.StepLR(optimizer, draw.randint(1, 5))
        for _ in range(draw.randint(0, 3)):
            optimizer.zero_grad()
            net(torch.randint(11, (4,))).float().square().mean().backward()
            optimizer.step()
            scheduler.step()
        parts: dict[str, Any] = {
            "model": net.state_dict(), "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }  # fmt: skip
        if draw.random() < 0.6:
            parts["ema"] = self._average(net.state_dict())
        named = {draw.choice(NAMES[role]): part for role, part in parts.items()}
        more = draw.sample(sorted(self._more(net).items()), draw.randint(1, 6))
        rows = [*named.items(), *more]
        draw.shuffle(rows)
        self.content = dict(rows)
        self.drops = sorted(draw.sample(sorted(self.content), draw.randint(1, len(rows) - 1)))
        self.how = {"pickle_protocol": draw.choice((2, 2, 2, 3, 4))}

    def _average(self, state: dict[str, Tensor]) -> Any:
        """An EMA: a copy, one that shares the buffers, or a list without names."""
        copies = {
            name: tensor * 0.9 if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
        return self._draw.choice((copies, OrderedDict(copies), {"shadow": list(copies.values())}))

    def _more(self, net: Net) -> dict[str, Any]:
        weight = net.head.weight.detach()
        args = argparse.Namespace(lr=0.1, out=PurePosixPath("/runs/1"), layers=[1, 2])
        return {
            "epoch": 3, "global_step": 700, "best": 0.25, "args": args, "config": vars(args),
            "torch_rng": torch.get_rng_state(), "numpy_rng": np.random.RandomState(1).get_state(),
            "python_rng": random.Random(1).getstate(),
            "history": [{"loss": 0.5, "at": step} for step in range(4)],
            "metrics": defaultdict(list, {"acc": [np.float64(0.5)]}),
            "views": [weight, weight.t(), weight[1:3], weight[:, ::2]],
            "again": net.state_dict(), "same_args": args, "parameter": net.head.weight,
            "nothing": None, "words": ("a", ("b", {"c": {1, 2}})), "bytes": b"\x00\xff",
        }  # fmt: skip

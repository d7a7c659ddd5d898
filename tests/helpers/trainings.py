"""Small real trainings, saved in the ways of the libraries, and what can go wrong with each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from helpers.runs import seeded

State = dict[str, Any]
STEPS = 40
AN_EPOCH = 10  # steps


class Net(nn.Module):
    """A backbone with BatchNorm and an embedding, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 6, padding_idx=0)
        self.body = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh())
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


def step(net: nn.Module, *optimizers: torch.optim.Optimizer) -> float:
    """One batch."""
    loss = net(torch.randint(1, 30, (8,))).square().mean()
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def trained(
    make: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    *,
    steps: int = STEPS,
    each_epoch: bool = False,
    accumulate: int = 1,
) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """(model, optimizer, scheduler) after so many batches."""
    with seeded(3):
        net = Net()
        optimizer = make(net) if make else torch.optim.AdamW(net.parameters(), 1e-3)
        scheduler = (
            schedule(optimizer) if schedule else lr_scheduler.CosineAnnealingLR(optimizer, 99)
        )
        for i in range(1, steps + 1):
            net(torch.randint(1, 30, (8,))).square().mean().backward()
            if i % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
            if (i % AN_EPOCH == 0) if each_epoch else (i % accumulate == 0):
                scheduler.step()
        return net, optimizer, scheduler


def saved(parts: Iterable[Any], **more: Any) -> State:
    """The usual dict of state dicts."""
    names = ("model", "optimizer", "scheduler")
    return {n: part.state_dict() for n, part in zip(names, parts, strict=True)} | more


def generators() -> State:
    """As Hugging Face names them."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "cpu": torch.get_rng_state(),
        "cuda": torch.zeros(16, dtype=torch.uint8),
    }


# ---------------------------------------------------------------------------------- sound: counters


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=99)


def in_turn(optimizer: torch.optim.Optimizer) -> Any:
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    return lr_scheduler.SequentialLR(
        optimizer, [warm, lr_scheduler.CosineAnnealingLR(optimizer, 99)], [5]
    )


def chained(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
            lr_scheduler.ExponentialLR(optimizer, 0.9),
        ]
    )


def as_accelerate() -> State:
    """A scheduler that steps once for each of 4 processes."""
    parts = trained(schedule=lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)))
    for _ in range(3 * STEPS):
        parts[2].step()
    return saved(parts, step=STEPS)


def two_at_once() -> State:
    """A warm-up and a decay that step one after the other."""
    with seeded(3):
        net = Net()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=50)
        decay = lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(STEPS):
            step(net, optimizer)
            warm.step()
            decay.step()
    states = {"schedulers": [warm.state_dict(), decay.state_dict()]}
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), **states}


def skipped(count: int) -> State:
    """GradScaler skips steps whose gradients overflowed: the scheduler goes on."""
    net, optimizer, scheduler = trained()
    for _ in range(count):
        scheduler.step()
    return saved((net, optimizer, scheduler), global_step=STEPS + count)


def gan() -> State:
    """Two networks, two optimizers; the critic makes five steps to one."""
    with seeded(3):
        one, two = Net(), nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1))
        ours = torch.optim.Adam(one.parameters(), 1e-3)
        theirs = torch.optim.Adam(two.parameters(), 1e-3)
        for i in range(STEPS):
            two(one(torch.randint(1, 30, (8,)))).mean().backward()
            theirs.step()
            if i % 5 == 4:
                ours.step()
            ours.zero_grad()
            theirs.zero_grad()
    return {
        "netG": one.state_dict(), "netD": two.state_dict(), "optG": ours.state_dict(),
        "optD": theirs.state_dict(), "iteration": STEPS // 5, "epoch": 0,
    }  # fmt: skip


def before_its_turn() -> State:
    """A discriminator that begins after 50,000 steps."""
    state = gan()
    state["optD"]["state"] = {}
    return state


def only_generator() -> State:
    state = gan()
    del state["netD"]
    return state


def adapters() -> State:
    """The optimizer knows the adapters only, the file holds everything."""
    with seeded(3):
        net = Net()
        net.requires_grad_(False)
        net.low = nn.Linear(6, 2, bias=False)
        net.high = nn.Linear(2, 12, bias=False)
        trained_part = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained_part, 1e-3)
        for _ in range(STEPS):
            net.high(net.low(torch.randn(4, 6))).square().mean().backward()
            optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": STEPS}


def plateau() -> State:
    parts = trained(schedule=lr_scheduler.ReduceLROnPlateau, steps=0)
    return saved(parts, epoch=0, global_step=0)


def by_hand() -> State:
    """A warm-up by hand in the first epoch, before the scheduler has stepped."""
    net, optimizer, scheduler = trained(each_epoch=True, steps=AN_EPOCH - 1)
    optimizer.param_groups[0]["lr"] = 1e-5
    return saved((net, optimizer, scheduler), epoch=0, step=AN_EPOCH - 1)


def added_group() -> State:
    """A backbone that was unfrozen: a group that the scheduler has not met yet."""
    net, optimizer, scheduler = trained(lambda n: torch.optim.AdamW(n.head.parameters(), 1e-3))
    optimizer.add_param_group({"params": list(net.body.parameters()), "lr": 1e-5})
    return saved((net, optimizer, scheduler), epoch=4)


def tensors_of_counts() -> State:
    parts = trained(lambda n: torch.optim.Adam(n.parameters(), torch.tensor(1e-3)))
    return saved(parts, global_step=torch.tensor(STEPS), epoch=4)


# -------------------------------------------------------------------------------- sound: optimizers


def sgd(momentum: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda net: torch.optim.SGD(net.parameters(), 1e-2, momentum=momentum)


def groups_of(net: nn.Module) -> list[State]:
    """Decay, and no decay."""
    return [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def muon(net: nn.Module) -> torch.optim.Optimizer:
    """Its groups hold the matrices of one size each, the largest first."""
    sizes = sorted({p.numel() for p in net.parameters()}, reverse=True)
    groups = [{"params": [p for p in net.parameters() if p.numel() == n]} for n in sizes]
    return torch.optim.SGD(groups, 1e-2, momentum=0.9)


ORDERS: dict[str, Callable[[nn.Module], list[nn.Parameter]]] = {
    "the head first": lambda n: [*n.head.parameters(), *n.body.parameters(), *n.embed.parameters()],
    "weights first": lambda n: sorted(n.parameters(), key=lambda p: -p.ndim),
    "the largest first": lambda n: sorted(n.parameters(), key=lambda p: -p.numel()),
    "reversed": lambda n: list(n.parameters())[::-1],
    "by name": lambda n: [p for _, p in sorted(n.named_parameters())],
}


def in_order(name: str) -> State:
    return saved(trained(lambda n: torch.optim.AdamW(ORDERS[name](n), 1e-3)), step=STEPS)


def projected() -> State:
    """GaLore: the moments of matrices are of a few rows."""
    state = saved(trained(), global_step=STEPS)
    for values in state["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if values[name].ndim > 1:
                values[name] = torch.randn(2, values[name].shape[1])
    state["optimizer"]["param_groups"][0] |= {"rank": 2, "proj_type": "std"}
    return state


def factored() -> State:
    """Adafactor: rows and columns of matrices, all of vectors."""
    state = saved(trained(), global_step=STEPS)
    for values in state["optimizer"]["state"].values():
        whole = values.pop("exp_avg_sq")
        del values["exp_avg"]
        if whole.ndim > 1:
            values |= {"exp_avg_sq_row": whole.mean(-1), "exp_avg_sq_col": whole.mean(-2)}
        else:
            values["exp_avg_sq"] = whole
    return state


def partition(padding: int, *, with_model: bool) -> State:
    """ZeRO: one flat partition, padded to a multiple of the world's size."""
    net, optimizer, _ = trained()
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    moments = {"step": torch.tensor(40.0)}
    for name in ("exp_avg", "exp_avg_sq"):
        values = torch.cat([s[name].flatten() for s in optimizer.state_dict()["state"].values()])
        moments[name] = torch.cat([values, torch.zeros(padding)])
    inner = {
        "state": {0: moments},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99), "params": [0]}],
    }
    zero = {"base_optimizer_state": inner, "single_partition_of_fp32_groups": [flat],
            "group_paddings": [padding], "partition_count": [4], "zero_stage": 2}  # fmt: skip
    module = {"module": net.state_dict()} if with_model else {}
    return {"optimizer_state_dict": zero, "ds_version": "0.17", **module}


def sparse_embedding() -> State:
    """A table whose first thousands of rows no batch had: its moments begin with zeros."""
    with seeded(3):
        net = nn.Embedding(9_000, 4)
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(5):
            net(torch.randint(8_000, 9_000, (64,))).square().mean().backward()
            optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}


def named() -> State:
    return saved(trained(lambda n: torch.optim.AdamW(n.named_parameters(), 1e-3)), step=STEPS)


SOUND: dict[str, Callable[[], State]] = {
    "counted from zero": lambda: saved(trained(), iteration=STEPS - 1),
    "counted from zero, the epoch too": lambda: saved(trained(), epoch=3, global_step=STEPS - 1),
    "epochs as a fraction": lambda: saved(trained(), epoch=3.9, global_step=STEPS),
    "a step within its epoch": lambda: saved(trained(), epoch=3, step=9),
    "a batch within its epoch": lambda: saved(trained(), epoch=3, iter=AN_EPOCH),
    "two updates an iteration": lambda: saved(trained(), iteration=STEPS // 2 - 1),
    "micro-batches": lambda: saved(trained(accumulate=4), global_step=STEPS),
    "updates of micro-batches": lambda: saved(trained(accumulate=4), global_step=STEPS // 4),
    "steps that a scaler skipped": lambda: skipped(6),
    "steps that a scaler skipped, nothing counted": lambda: {
        k: v for k, v in skipped(6).items() if k != "global_step"
    },
    "a scheduler for each epoch": lambda: saved(trained(each_epoch=True), epoch=4),
    "a scheduler for each epoch, zero-based": lambda: saved(trained(each_epoch=True), epoch=3),
    "one cycle": lambda: saved(trained(schedule=one_cycle), global_step=STEPS),
    "one cycle of SGD": lambda: saved(trained(sgd(0.9), one_cycle), global_step=STEPS),
    "schedulers in turn": lambda: saved(trained(schedule=in_turn), global_step=STEPS),
    "chained schedulers": lambda: saved(trained(schedule=chained), global_step=STEPS),
    "two schedulers at once": two_at_once,
    "a scheduler of four processes": as_accelerate,
    "a plateau not reached": plateau,
    "a warm-up by hand": by_hand,
    "a group that was added": added_group,
    "counts in tensors": tensors_of_counts,
    "two optimizers": gan,
    "an optimizer before its turn": before_its_turn,
    "an optimizer of what is not saved": only_generator,
    "adapters": adapters,
    "decay and no decay": lambda: saved(trained(lambda n: torch.optim.AdamW(groups_of(n), 1e-3))),
    "a group for each parameter": lambda: saved(
        trained(lambda n: torch.optim.AdamW([{"params": [p]} for p in n.parameters()], 1e-3))
    ),
    "groups by size": lambda: saved(trained(muon), step=STEPS),
    "SGD": lambda: saved(trained(sgd(0.0)), epoch=4),
    "SGD, a step within its epoch": lambda: saved(trained(sgd(0.0)), epoch=3, step=9),
    "SGD with momentum": lambda: saved(trained(sgd(0.9)), epoch=4, global_step=STEPS),
    "named parameters": named,
    "projected gradients": projected,
    "factored moments": factored,
    "a flat partition": lambda: partition(0, with_model=False),
    "a padded partition": lambda: partition(6, with_model=False),
    "a padded partition beside the model": lambda: partition(6, with_model=True),
    "rows without a gradient": sparse_embedding,
    **{f"parameters given {name}": lambda name=name: in_order(name) for name in ORDERS},
    **{
        kind.__name__: lambda kind=kind: saved(
            trained(lambda n: kind(n.parameters(), 1e-3)), epoch=4
        )
        for kind in (
            torch.optim.Adam, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
            torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.ASGD,
            torch.optim.Rprop, torch.optim.Adafactor,
        )
    },
}  # fmt: skip


# ------------------------------------------------------------------------------------------- broken


def moved(order: Callable[[list[Any]], list[Any]], *names: str) -> Callable[[], State]:
    """The states, or some of their moments, of other parameters of the group."""

    def make() -> State:
        state = saved(trained(), global_step=STEPS)
        states = state["optimizer"]["state"]
        keys = list(states)
        for name in names or ("exp_avg", "exp_avg_sq"):
            values = [states[key][name] for key in order(keys)]
            for key, value in zip(keys, values, strict=True):
                states[key][name] = value
        return state

    return make


def exchanged(keys: list[Any], one: int, other: int) -> list[Any]:
    keys = list(keys)
    keys[one], keys[other] = keys[other], keys[one]
    return keys


def with_counts(count: float) -> State:
    state = saved(trained(steps=400), global_step=400)
    for values in state["optimizer"]["state"].values():
        values["step"] = torch.tensor(count)
    return state


def of_later(steps: int) -> State:
    """The scheduler of a later checkpoint."""
    state = saved(trained(each_epoch=False), global_step=STEPS)
    state["scheduler"]["last_epoch"] += steps
    state["scheduler"]["_step_count"] += steps
    return state


def in_groups_permuted() -> State:
    state = saved(trained(lambda n: torch.optim.AdamW(groups_of(n), 1e-3)), global_step=STEPS)
    states = state["optimizer"]["state"]
    states[1], states[2] = states[2], states[1]
    return state


def named_permuted() -> State:
    state = named()
    states = state["optimizer"]["state"]
    states[0], states[1] = states[1], states[0]
    return state


BROKEN: dict[str, tuple[str, Callable[[], State]]] = {
    "two states exchanged": ("CK504", moved(lambda k: exchanged(k, 0, 1))),
    "two states exchanged far apart": ("CK504", moved(lambda k: exchanged(k, 3, 6))),
    "states moved by two": ("CK504", moved(lambda k: [*k[2:], *k[:2]])),
    "first moments exchanged": ("CK504", moved(lambda k: exchanged(k, 0, 1), "exp_avg")),
    "second moments exchanged": ("CK504", moved(lambda k: exchanged(k, 1, 5), "exp_avg_sq")),
    "states of a group exchanged": ("CK504", in_groups_permuted),
    "states of named parameters exchanged": ("CK504", named_permuted),
    "more steps than the run": ("CK506", lambda: saved(trained(), global_step=11)),
    "more steps than the run, by iteration": ("CK506", lambda: saved(trained(), iteration=29)),
    "a step count of zero": ("CK522", lambda: with_counts(0.0)),
    "a step count begun anew": ("CK522", lambda: with_counts(3.0)),
    "a scheduler of later": ("CK523", lambda: of_later(30)),
    "rates of another moment": (
        "CK508", lambda: saved(trained(), global_step=STEPS) | {
            "scheduler": trained(steps=80)[2].state_dict()
        },
    ),
}  # fmt: skip

"""The question that diff is for: is a resumed run the same as one that was never interrupted?

A DoRA fine-tune and a plain trainer, both with AdamW, a scheduler, dropout and shuffled batches,
are trained for three epochs at a stretch, and for two, saved, loaded in new objects, and for one
more.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ckptool.testing import assert_checkpoints_close

STATEFUL = ("model", "optimizer", "scheduler")
STATED = {"*": 1e-12, "*.delta_*": 1e-8}


class DoRALinear(nn.Module):
    """weight = m * V / |V| with V = W0 + B A (Liu et al. 2024); only m, A and B are trained."""

    def __init__(self, width, out, rank=2):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width) / width**0.5, requires_grad=False)
        self.m = nn.Parameter(self.weight.norm(dim=0, keepdim=True))
        self.delta_A = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.delta_B = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x):
        direction = self.weight + self.delta_B @ self.delta_A
        return functional.linear(x, self.m * direction / direction.norm(dim=0, keepdim=True))


def adapted():
    return nn.Sequential(DoRALinear(6, 16), nn.GELU(), nn.Dropout(0.2), DoRALinear(16, 2))


def plain():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
                         nn.Linear(16, 2))  # fmt: skip


class Trainer:
    """A resumable training script."""

    def __init__(self, make):
        torch.manual_seed(7)
        self.model = make()
        moving = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(moving, lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 3)
        self.epoch = 0
        self.x = torch.randn(32, 6)
        self.y = torch.randn(32, 2)

    def train(self, epochs):
        for _ in range(epochs):
            for batch in torch.randperm(32).split(8):
                loss = functional.mse_loss(self.model(self.x[batch]), self.y[batch])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            self.scheduler.step()
            self.epoch += 1
        return self

    def save(self, path):
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        torch.save({**parts, "epoch": self.epoch, "rng": torch.get_rng_state()}, path)
        return path

    def resume(self, path, *, leaving_out=()):
        state = torch.load(path, weights_only=False)
        parts = {name: getattr(self, name).load_state_dict for name in STATEFUL}
        parts["rng"] = torch.set_rng_state
        for name, restore in parts.items():
            if name not in leaving_out:
                restore(state[name])
        self.epoch = state["epoch"]
        return self


@pytest.fixture(params=[adapted, plain], ids=["dora", "adamw"])
def runs(request, tmp_path):
    """(the run at a stretch, a function that makes the resumed one)."""
    make = request.param
    whole = Trainer(make).train(3).save(tmp_path / "whole.pt")
    middle = Trainer(make).train(2).save(tmp_path / "middle.pt")

    def resumed(*leaving_out):
        again = Trainer(make).resume(middle, leaving_out=leaving_out)
        return again.train(1).save(tmp_path / "resumed.pt")

    return whole, resumed


def test_a_run_that_resumes_everything_is_the_same(runs):
    whole, resumed = runs
    assert_checkpoints_close(whole, resumed(), tolerances=STATED)


def test_a_run_that_does_not_restore_the_random_state_is_another(runs, ckptool):
    whole, resumed = runs
    done = ckptool("diff", whole, resumed("rng"), "--json", "--tolerance", "*=1e-12")
    assert done.exit_code == 1
    first = done.json["summary"]["first"]
    assert (first["section"], first["role"], first["kind"]) == ("model", "model", "value")
    sections = {row["address"]: row["differing"] for row in done.json["sections"]}
    assert sections["optimizer"] > 0
    assert sections["rng"] == 1  # another seed: it went on from where the new process stood
    with pytest.raises(AssertionError, match=r"first difference( \(model\))?: model"):
        assert_checkpoints_close(whole, resumed("rng"), tolerances=STATED)


def test_a_run_that_forgets_its_scheduler_is_found_out(runs, ckptool):
    whole, resumed = runs
    done = ckptool("diff", whole, resumed("scheduler"), "--json", "--ignore", "model/*",
                   "--ignore", "optimizer/state/*")  # fmt: skip
    assert done.exit_code == 1
    assert "scheduler/last_epoch" in {row["address"] for row in done.json["values"]}


def test_the_frozen_weights_of_a_fine_tune_are_equal(tmp_path, ckptool):
    before = Trainer(adapted).save(tmp_path / "before.pt")
    after = Trainer(adapted).train(3).save(tmp_path / "after.pt")
    done = ckptool("diff", f"{before}#@model", f"{after}#@model", "--name-only")
    assert done.split() == ["0.m", "0.delta_A", "0.delta_B", "3.m", "3.delta_A", "3.delta_B"]

"""The certificate on optimizers of many kinds: none is a reason to fail a healthy checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch

from helpers import runs


def gan(state):
    """Two models, each with an optimizer and a scheduler; the second has fewer groups."""
    for kind in ("model", "optimizer", "lr_scheduler"):
        state[f"discriminator_{kind}"] = copy.deepcopy(state[kind])


def named(state):
    names = [name for name in state["model"] if name.endswith(("weight", "bias"))]
    state["optimizer"]["param_groups"][0]["param_names"] = names


def eight_bit(state):
    """As bitsandbytes keeps them: blocks of bytes, with a scale for each block."""
    for values in state["optimizer"]["state"].values():
        for slot, name in (("state1", "exp_avg"), ("state2", "exp_avg_sq")):
            moment = values.pop(name)
            values[slot] = torch.zeros(moment.shape, dtype=torch.uint8)
            values[f"absmax{slot[-1]}"] = torch.ones(1)
            values[f"qmap{slot[-1]}"] = torch.linspace(-1, 1, 256)


def schedule_free(state):
    """No scheduler; the optimizer keeps a second copy of the weights, and its own counts."""
    del state["lr_scheduler"]
    for values in state["optimizer"]["state"].values():
        values["z"] = values.pop("exp_avg")
    group = state["optimizer"]["param_groups"][0]
    del group["initial_lr"]
    group.update(k=20, train_mode=True, weight_sum=20.0, lr_max=0.01)


def per_group(state):
    """Weights and biases apart, as most recipes do."""
    (group,) = state["optimizer"]["param_groups"]
    parts = [copy.deepcopy(group), copy.deepcopy(group)]
    parts[0]["params"], parts[1]["params"] = [0, 2, 4], [1, 3, 5]
    moved = [state["optimizer"]["state"][i] for i in (0, 2, 4, 1, 3, 5)]
    state["optimizer"] = {
        "state": dict(enumerate(moved)),
        "param_groups": [
            parts[0] | {"params": [0, 1, 2], "weight_decay": 0.01},
            parts[1] | {"params": [3, 4, 5], "weight_decay": 0.0},
        ],
    }
    scheduler = state["lr_scheduler"]
    for key in ("base_lrs", "_last_lr"):
        scheduler[key] = scheduler[key] * 2


def fused(state):
    """The fused kernels keep the count as a tensor of one number in float32."""
    state["optimizer"]["param_groups"][0]["fused"] = True
    for values in state["optimizer"]["state"].values():
        values["step"] = torch.tensor(float(values["step"]))


@pytest.mark.parametrize("change", [gan, named, eight_bit, schedule_free, per_group, fused])
def test_a_healthy_optimizer_resumes(change, state, tmp_path, ckptool):
    change(state)
    report = ckptool("verify", runs.save(state, tmp_path), "--require", "resume", "--json").json
    told = {f["rule"] for f in report["findings"] if f["severity"] != "info"}
    assert (report["ok"], report["resume"]["verdict"]) == (True, "to-the-bit")
    assert not {rule for rule in told if rule.startswith("CK5")}

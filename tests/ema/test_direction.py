"""The last step of an optimizer points from the average to the raw weights: a hint, never more."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from ckptool.contents.inventory import take_inventory
from ckptool.ema.direction import SILENT_BELOW, direction_cosine
from ckptool.ema.locate import locate_ema
from helpers.twins import in_memory


def trained(make_optimizer, decay: float = 0.9, steps: int = 20):
    """(raw weights, their average, the optimizer's state) of a net that learns a plane."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    average, optimizer = deepcopy(net), make_optimizer(net.parameters())
    plane = torch.randn(5, 3)
    for _ in range(steps):
        x = torch.randn(16, 5)
        target = x @ plane + 0.1 * torch.randn(16, 3)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), target).backward()
        optimizer.step()
        with torch.no_grad():
            for ema, raw in zip(average.parameters(), net.parameters(), strict=True):
                ema.lerp_(raw, 1 - decay)
    return net.state_dict(), average.state_dict(), optimizer.state_dict()


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(
        parameters, lr=0.02, momentum=0.9, nesterov=True
    ),
}


def cosine(content) -> float | None:
    checkpoint = in_memory(content)
    location = locate_ema(checkpoint)
    inventory = take_inventory(checkpoint.tree)
    return direction_cosine(inventory, location.model, location.candidates[0], checkpoint.reader)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.8, 0.95])
def test_sign_tells_the_raw_slot(optimizer, decay):
    raw, average, state = trained(OPTIMIZERS[optimizer], decay)
    assert cosine({"model": raw, "ema": average, "optimizer": state}) > SILENT_BELOW
    assert cosine({"model": average, "ema": raw, "optimizer": state}) < -SILENT_BELOW


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5, 200])
def test_sign_is_never_wrong(optimizer, steps):
    """With a slow average the cosine is small: then nothing is said."""
    raw, average, state = trained(OPTIMIZERS[optimizer], 0.999, steps)
    right = cosine({"model": raw, "ema": average, "optimizer": state})
    swapped = cosine({"model": average, "ema": raw, "optimizer": state})
    assert right is None or right > 0
    assert swapped is None or swapped < 0


def turned(decay: float):
    """Weights that went far one way and have turned: the average of a healthy run trails ahead."""
    raw = {f"{i}.weight": torch.full((4, 4 + i), 1.0) for i in range(4)}
    average = {name: tensor - decay for name, tensor in raw.items()}
    state = {
        i: {
            "step": 60.0,
            "exp_avg": torch.full((4, 4 + i), 1.0),
            "exp_avg_sq": torch.ones(4, 4 + i),
        }
        for i in range(4)
    }
    group = {"lr": 0.005, "betas": (0.9, 0.999), "params": list(state)}
    return {"model": raw, "ema": average, "optimizer": {"state": state, "param_groups": [group]}}


def test_silent_where_the_average_lies_many_steps_behind():
    assert cosine(turned(0.5)) is None
    assert cosine(turned(0.01)) < -SILENT_BELOW  # a few steps: then the sign counts


def test_silent_where_tensors_disagree():
    content = turned(0.01)
    content["ema"]["0.weight"] = content["model"]["0.weight"] + 0.01
    assert cosine(content) is None


@pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf"), None, "0.1", -1])
def test_silent_without_a_learning_rate(rate):
    content = turned(0.01)
    content["optimizer"]["param_groups"][0]["lr"] = rate
    assert cosine(content) is None


def test_silent_without_an_optimizer():
    raw, average, _ = trained(OPTIMIZERS["adam"])
    assert cosine({"model": raw, "ema": average}) is None


def test_silent_without_moments():
    raw, average, state = trained(lambda parameters: torch.optim.SGD(parameters, lr=0.02))
    assert cosine({"model": raw, "ema": average, "optimizer": state}) is None


def test_silent_when_nothing_differs():
    raw, _, state = trained(OPTIMIZERS["adam"])
    assert cosine({"model": raw, "ema": dict(raw), "optimizer": state}) is None


def test_silent_when_shapes_leave_the_order_open():
    raw, average, state = trained(OPTIMIZERS["adam"])
    twins = {f"again.{name}": tensor for name, tensor in raw.items()}
    assert cosine({"model": raw | twins, "ema": average, "optimizer": state}) is None


def test_swapped_file_is_a_warning_of_inspect_and_nothing_else(ckptool, tmp_path):
    raw, average, state = trained(OPTIMIZERS["adam"])
    for name, content in (
        ("right", {"model": raw, "ema": average, "optimizer": state}),
        ("swapped", {"model": average, "ema": raw, "optimizer": state}),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        report = ckptool("inspect", tmp_path / f"{name}.pt", "--json").json
        rules = [finding["rule"] for finding in report["findings"]]
        assert rules == (["CK408"] if name == "swapped" else [])
        assert report["ema"]["status"] == "found"

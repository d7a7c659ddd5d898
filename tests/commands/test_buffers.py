"""Buffers that the average never updated: told, and taken from the model where that is asked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ckptool import load_state_dict
from helpers.making import average_of, resumable
from helpers.paths import FIXTURES
from helpers.tensors import assert_same_tensors, load


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def trained(scale: float, shift: float):
    """(model, average of the parameters alone), on inputs of this scale."""
    torch.manual_seed(3)
    model = net()
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(30):
        x = torch.randn(16, 3)
        optimizer.zero_grad()
        (model(x * scale + shift) - x[:, :2]).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
                ours.lerp_(theirs, 0.2)
    return model.state_dict(), average.state_dict()


STATISTICS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def mixed(model, average):
    """The average with the model's statistics."""
    return average | {name: model[name] for name in STATISTICS}


@pytest.fixture(params=[(1.0, 0.0), (50.0, 900.0)], ids=["normalised", "as measured"])
def made(request, tmp_path):
    model, average = trained(*request.param)
    path = tmp_path / "last.pt"
    content = {"state_dict": model, "ema_state_dict": average, **resumable(model)}
    torch.save(content, path)
    return path, model, average


def rules(document) -> dict[str, str]:
    return {found["rule"]: found["message"] for found in document["findings"]}


@pytest.mark.parametrize("command", [("verify", "--require", "ema"), ("inspect",)])
def test_it_is_told(command, made, ckptool):
    path, *_ = made
    told = rules(ckptool(command[0], path, *command[1:], "--json").json)
    assert "1.num_batches_tracked is 0 here, 30 in the model" in told["CK416"]
    assert "3 tensors" in told["CK416"]
    assert "CK405" not in told  # the parameters are a good average


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_what_is_stored_is_taken_with_a_warning(command, made, ckptool, tmp_path):
    path, _, average = made
    report = ckptool(command, path, "-o", tmp_path / "out.pt", "--json").json
    assert rules(report)["CK416"].endswith("--buffers model takes the model's")
    found = load(tmp_path / "out.pt")
    assert_same_tensors(found.get("state_dict", found), average)


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_the_models_are_taken_when_asked(command, made, ckptool, tmp_path):
    path, model, average = made
    output = tmp_path / "out.pt"
    report = ckptool(command, path, "-o", output, "--buffers", "model", "--json").json
    assert "CK416" not in rules(report)
    assert tuple(report.get("from_model") or report["kept"]) == STATISTICS
    found = load(output)
    assert_same_tensors(found.get("state_dict", found), mixed(model, average))


@pytest.mark.parametrize("names", ["model", "bare", "ema"])
def test_under_all_names(names, made, ckptool, tmp_path):
    path, model, average = made
    output = tmp_path / "out.pt"
    args = ("-o", output, "--buffers", "model", "--names", names)
    assert ckptool("extract-ema", path, *args).exit_code == 0
    assert_same_tensors(load(output), mixed(model, average))


def test_from_python(made):
    path, model, average = made
    assert_same_tensors(load_state_dict(path, buffers="model"), mixed(model, average))
    assert_same_tensors(load_state_dict(path), average)


def test_a_release_with_the_models_buffers_is_that_average(made, ckptool, tmp_path):
    path, model, average = made
    output = tmp_path / "release.pt"
    assert ckptool("extract-ema", path, "-o", output, "--buffers", "model").exit_code == 0
    assert ckptool("verify", output, "--against", path).exit_code == 0
    broken = mixed(model, average) | {"1.running_mean": model["1.running_mean"] + 1}
    torch.save(broken, output)
    assert ckptool("verify", output, "--against", path).exit_code == 1


def test_a_file_promoted_with_the_models_buffers_is_known(made, ckptool, tmp_path):
    path, model, average = made
    promoted, output = tmp_path / "promoted.pt", tmp_path / "again.pt"
    assert ckptool("promote-ema", path, "-o", promoted, "--buffers", "model").exit_code == 0
    assert ckptool("inspect", promoted, "--json").json["ema"]["main_slot"] == "averaged"
    assert ckptool("extract-ema", promoted, "-o", output).exit_code == 0
    assert_same_tensors(load(output), mixed(model, average))


def test_without_a_model_beside_it_there_is_nothing_to_take(ckptool, tmp_path):
    torch.save({"params_ema": net().state_dict()}, tmp_path / "only.pt")
    args = (tmp_path / "only.pt", "-o", tmp_path / "out.pt", "--buffers", "model")
    refused = ckptool("extract-ema", *args)
    assert refused.exit_code == 2
    assert "--buffers ema" in refused.stderr


@pytest.mark.parametrize("place", ["#@model", ""])
def test_nor_for_what_lies_in_the_models_slot(place, ckptool, tmp_path):
    path = FIXTURES / "ema" / "mmengine" / "epoch_3.pth"
    args = (f"{path}{place}", "-o", tmp_path / "out.pt", "--buffers", "model")
    assert ckptool("extract-ema", *args).exit_code == 2


# ------------------------------------------------------------------------------- other statistics


def told(ckptool, tmp_path, model, average) -> str | None:
    torch.save({"model": model, "ema": average}, tmp_path / "last.pt")
    return rules(ckptool("inspect", tmp_path / "last.pt", "--json").json).get("CK416")


WEIGHTS = {f"{i}.weight": torch.randn(4, 4, generator=torch.manual_seed(i)) for i in range(3)}
MEAN = torch.tensor([0.5, -1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("norm.moving_mean", MEAN, torch.zeros(3)),
        ("obs.mean", MEAN, torch.zeros(3)),
        ("obs.var", MEAN.abs(), torch.ones(3)),
        ("flow.initialized", torch.tensor(1).to(torch.uint8), torch.tensor(0).to(torch.uint8)),
        ("flow.initialized", torch.tensor(True), torch.tensor(False)),
        ("norm.count", torch.tensor(700), torch.tensor(0)),
    ],
)  # fmt: skip
def test_any_statistic_at_its_initial_value(name, ours, theirs, ckptool, tmp_path):
    message = told(ckptool, tmp_path, WEIGHTS | {name: ours}, average_of(WEIGHTS) | {name: theirs})
    assert message is not None
    assert name in message


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (torch.zeros(3), torch.zeros(3)),  # not trained either
        (torch.ones(3), torch.ones(3)),
        (MEAN, MEAN * 0.9),
        (torch.full((3,), 1e-6), torch.zeros(3)),  # too small to matter, or to hold
        (MEAN, torch.full((3,), 0.25)),  # constant, but no initial value
    ],
)
def test_healthy_statistics_are_no_finding(ours, theirs, ckptool, tmp_path):
    model, average = WEIGHTS | {"norm.bias": ours}, average_of(WEIGHTS) | {"norm.bias": theirs}
    assert told(ckptool, tmp_path, model, average) is None


def test_a_counter_of_batches_alone_is_none(ckptool, tmp_path):
    """Whoever averages floating-point values only leaves it at 0."""
    counter = "norm.num_batches_tracked"
    model = WEIGHTS | {"norm.running_mean": MEAN, counter: torch.tensor(200)}
    average = average_of(model) | {counter: torch.tensor(0)}
    assert told(ckptool, tmp_path, model, average) is None

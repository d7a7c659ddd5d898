"""Many places that could hold averages, and containers under many keys: told, not passed over."""

from __future__ import annotations

import json

import pytest
import torch

from ckptool.ema import examine


def weights(value: float = 0.0, count: int = 4) -> dict[str, torch.Tensor]:
    return {f"layers.{i}.weight": torch.full((2, 3), value) for i in range(count)}


@pytest.fixture
def inspected(ckptool, tmp_path):
    def inspect(state):
        path = tmp_path / "run.pt"
        torch.save(state, path)
        done = ckptool("inspect", path, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    return inspect


@pytest.mark.parametrize("count", [10, 80])
def test_averages_with_nan_in_the_same_bytes_are_one(count, inspected):
    average = weights(float("nan"))
    state = {"model": weights(), **{f"ema_{i}": dict(average) for i in range(count)}}
    ema = inspected(state)["ema"]
    assert (ema["status"], len(ema["candidates"])) == ("found", 1)


def test_too_many_places_are_told_and_nothing_is_taken(ckptool, tmp_path, monkeypatch):
    """For less effort than is allowed; ``test_bombs.py`` has crowds of full size."""
    monkeypatch.setattr(examine, "MAX_EFFORT", 1 << 14)
    path = tmp_path / "crowd.pt"
    averages = {f"ema_{i}": weights(i + 1.0) for i in range(200)}
    torch.save({"model": weights(), **averages, "epoch": 3}, path)
    seen = json.loads(ckptool("inspect", path, "--json").stdout)
    assert seen["ema"]["status"] == "ambiguous"
    assert seen["ema"]["selected"] is None
    assert "too many" in seen["ema"]["candidates"][0]["why"]
    assert seen["training"]["epoch"] == 3
    refused = ckptool("extract-ema", path, "--dry-run")
    assert refused.exit_code == 2
    assert "too many places could be meant, among others: ema_0 (ema)" in refused.stderr
    assert "ema_99" not in refused.stderr
    assert ckptool("verify", path, "--require", "ema").exit_code == 1
    assert ckptool("extract-ema", path, "--ema", "ema_7", "--dry-run").exit_code == 0
    refused = ckptool("extract-ema", path, "--ema", "@model", "--dry-run")
    assert refused.exit_code == 2
    assert "too many key paths" in refused.stderr


def test_what_a_container_says_does_not_depend_on_the_key_that_comes_first(inspected):
    results = {"val_loss": 0.5, "best_acc": 3}
    states = {"torch": torch.get_rng_state(), "seed": 1}
    found = inspected({
        "model": weights(), "info": results, "metrics": results, "extra": states, "rng": states,
    })["training"]  # fmt: skip
    assert found["metrics"] == {"metrics/val_loss": 0.5}
    assert list(found["rng"]) == ["torch"]


def test_one_and_the_text_one_are_two_keys(inspected):
    state = {"1": 5, 1: {"a": {"ema": weights(1.0)}}, "model": weights()}
    assert inspected(state)["ema"]["selected"] == "1/a/ema"


@pytest.mark.parametrize("typed", ["ema/-1", "ema/01", "ema/2", "empty/-1", "empty/0"])
def test_a_place_in_a_list_is_a_plain_number(typed, ckptool, tmp_path):
    path = tmp_path / "lists.pt"
    torch.save({"model": weights(), "ema": [weights(1.0), weights(2.0)], "empty": []}, path)
    refused = ckptool("extract-ema", path, "--ema", typed, "--dry-run")
    assert refused.exit_code == 2
    assert "no such place" in refused.stderr
    assert ckptool("extract-ema", path, "--ema", "ema/1", "--dry-run").exit_code == 0

"""Averages in lists of (name, tensor), and several under one plural word."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ckptool.ema.locate import locate_ema
from ckptool.formats import open_checkpoint


def layers(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The same weights, moved apart by ``scale``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return {name: value * scale for name, value in net.state_dict().items()}


@pytest.mark.parametrize("pair", [tuple, list])
def test_a_list_of_names_and_tensors_is_one_average(pair, tmp_path, ckptool):
    average = layers(1.01)
    state = {"model": layers(), "ema": [pair(item) for item in average.items()]}
    torch.save(state, tmp_path / "a.pt")
    output = ckptool("extract-ema", tmp_path / "a.pt", "-o", tmp_path / "b.pt")
    assert output.exit_code == 0, output.stderr
    written = torch.load(tmp_path / "b.pt")
    assert list(written) == list(average)
    assert all(torch.equal(written[name], average[name]) for name in average)


def test_pairs_with_one_name_twice_are_no_table(tmp_path):
    twice = [*layers().items(), *layers(2.0).items()]
    torch.save({"model": layers(), "ema": twice}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert locate_ema(checkpoint).selected is None


@pytest.mark.parametrize("word", ["emas", "ema_models", "shadows", "averages", "avgs"])
@pytest.mark.parametrize("keys", [("0.9", "0.5"), ("slow", "fast"), (0, 1)])
def test_several_averages_under_a_plural_are_all_told(word, keys, tmp_path):
    several = {key: layers(1 + 0.1 * at) for at, key in enumerate(keys, 1)}
    held = list(several.values()) if keys == (0, 1) else several
    torch.save({"model": layers(), word: held}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        location = locate_ema(checkpoint)
        assert location.status == "ambiguous"
        assert {c.address for c in location.candidates} == {f"{word}/{key}" for key in keys}


def test_an_averaged_model_that_has_not_begun_is_told_beside_the_model(tmp_path, ckptool):
    net = nn.Linear(3, 4)
    swa = torch.optim.swa_utils.AveragedModel(net).state_dict()
    torch.save({"model": net.state_dict(), "swa": swa}, tmp_path / "a.pt")
    output = ckptool("verify", tmp_path / "a.pt", "--require", "ema", "--json")
    told = {row["rule"]: row["message"] for row in output.json["findings"]}
    assert "n_averaged is 0" in told["CK417"]
    assert told["CK401"].startswith("n_averaged is 0")
    shown = ckptool("inspect", tmp_path / "a.pt").stdout
    assert "CK417" in shown
    assert "before the averaging began" not in shown


def test_the_hint_for_asgd_names_where_its_averages_are(tmp_path, ckptool):
    net = nn.Linear(3, 4)
    optimizer = torch.optim.ASGD(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "a.pt")
    output = ckptool("extract-ema", tmp_path / "a.pt", "-o", tmp_path / "b.pt")
    assert "optimizer.state[p]['ax']" in output.stderr
    assert "evaluation" not in output.stderr

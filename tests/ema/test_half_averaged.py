"""Tied weights that a save copied apart, with an EMA of the parameters, which holds one of them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from helpers.paths import FIXTURES


def saved(path, other, average_of_both=False):
    """Save a model of two matrices and an EMA of the first."""
    generator = torch.Generator().manual_seed(5)
    embed = torch.randn(6, 4, generator=generator)
    bias = torch.randn(6, generator=generator)
    model = {"embed.weight": embed, "head.weight": other(embed), "head.bias": bias}
    averaged = ("embed.weight", "head.bias", *(["head.weight"] if average_of_both else []))
    average = {name: model[name] * 0.9 + 0.01 for name in averaged}
    torch.save({"model": model, "ema": average, "global_step": 7}, path)
    return path


def told(output) -> list[str]:
    return [found["message"] for found in output.json["findings"] if found["rule"] == "CK409"]


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_a_copy_without_ema_weights_is_told(command, ckptool, tmp_path):
    path = saved(tmp_path / "last.pt", torch.clone)
    done = ckptool(command, path, "-o", tmp_path / "out.pt", "--json")
    (message,) = told(done)
    assert message.startswith("head.weight equals embed.weight in the model, but the EMA holds")
    (message,) = told(ckptool("verify", path, "--json"))
    assert "load the values of embed.weight for both" in message


@pytest.mark.parametrize(
    "make",
    [
        lambda path: saved(path, lambda embed: embed + 1),
        lambda path: saved(path, torch.ones_like),
        lambda path: saved(path, lambda embed: embed.clone().T.contiguous()),
        lambda path: saved(path, torch.clone, average_of_both=True),
    ],
    ids=["other values", "a constant", "another shape", "both have EMA weights"],
)
def test_without_an_equal_one_nothing_is_told(make, ckptool, tmp_path):
    path = make(tmp_path / "last.pt")
    assert told(ckptool("extract-ema", path, "-o", tmp_path / "out.pt", "--json")) == []


def test_a_tie_that_the_file_shows_takes_the_ema_for_both(ckptool, tmp_path):
    path = saved(tmp_path / "last.pt", lambda embed: embed)
    out = tmp_path / "out.safetensors"
    assert told(ckptool("extract-ema", path, "-o", out, "--ties", "each", "--json")) == []
    found = load_file(out)
    assert torch.equal(found["embed.weight"], found["head.weight"])


def test_a_distributed_checkpoint_forgets_ties(ckptool, tmp_path):
    folder = FIXTURES / "sharded" / "rank_ema" / "dcp"
    (message,) = told(ckptool("extract-ema", folder, "-o", tmp_path / "out.pt", "--json"))
    assert "decode.weight equals embed.weight in the model" in message

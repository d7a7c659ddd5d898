"""A file from a big-endian machine says the same as its little-endian twin, in every command."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ckptool.formats import open_checkpoint
from ckptool.tensors.sample import beginning, is_readable
from helpers.tensors import assert_same_tensors

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_big(state, path, monkeypatch):
    """What torch writes on a machine such as s390x: swapped values, and a record that says so."""
    storages = {v.untyped_storage().data_ptr(): v for part in state.values() for v in part.values()}
    for value in storages.values():
        value.untyped_storage().byteswap(value.dtype)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "byteorder", "big")
        torch.save(state, path)
    for value in storages.values():
        value.untyped_storage().byteswap(value.dtype)
    return path


def trained():
    """A model, its EMA and the optimizer's state, with the types that trainers store."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for _ in range(9):
            net(torch.randn(4, 4)).square().mean().backward()
            optimizer.step()
    more = {"scale": torch.tensor([1.5, -2.0]).bfloat16(), "count": torch.tensor([1, 70_000])}
    model = {n: v.clone() for n, v in net.state_dict().items()} | more
    ema = {n: v * 0.9 if n[0].isdigit() else v.clone() for n, v in model.items()}
    return {"model": model, "ema": ema}


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """(big, little)"""
    state = trained()
    torch.save(state, tmp_path / "little.pt")
    return save_big(state, tmp_path / "big.pt", monkeypatch), tmp_path / "little.pt"


COMMANDS = {
    "verify": ("verify", "{}", "--require", "ema,finite,intact", "--json"),
    "verify, a sample": ("verify", "{}", "--json"),
    "inspect": ("inspect", "{}", "--stats", "--digests", "--json"),
}


def said(value):
    """The answer without the file's name and size."""
    if isinstance(value, list):
        return [said(part) for part in value]
    if isinstance(value, dict):
        return {k: said(v) for k, v in value.items() if k not in {"path", "size_bytes"}}
    return value


@pytest.mark.parametrize("command", COMMANDS)
def test_both_orders_give_one_answer(command, twins, ckptool):
    big, little = (ckptool(*[word.format(path) for word in COMMANDS[command]]) for path in twins)
    assert (big.exit_code, little.exit_code) == (0, 0)
    assert said(big.json) == said(little.json)


def test_they_are_equal_and_give_the_same_average(twins, tmp_path, ckptool):
    big, little = twins
    assert ckptool("diff", big, little).exit_code == 0
    for source, name in ((f"{big}", "ema"), (f"{big}#@model", "model")):
        output = tmp_path / f"{name}.safetensors"
        assert ckptool("extract-ema", source, "-o", output).exit_code == 0
        assert_same_tensors(load_file(output), torch.load(little)[name])
    assert ckptool("promote-ema", big, "-o", tmp_path / "promoted.pt").exit_code == 0
    assert_same_tensors(torch.load(tmp_path / "promoted.pt")["model"], torch.load(little)["ema"])


def test_a_bad_value_in_a_big_endian_file_is_found(tmp_path, monkeypatch, ckptool):
    state = trained()
    state["model"]["0.weight"][0, 0] = float("nan")
    path = save_big(state, tmp_path / "big.pt", monkeypatch)
    output = ckptool("verify", path, "--select", "CK303", "--json")
    assert [f["address"] for f in output.json["findings"]] == ["model/0.weight"]


LAYOUTS = {
    "whole": lambda t: t,
    "transposed": lambda t: t.t(),
    "a column": lambda t: t[:, 3],
    "every third": lambda t: t[::2, ::3],
    "one value": lambda t: t[3, 3],
    "expanded": lambda t: t[:1].expand(5, -1),
    "permuted": lambda t: t[:60, :20].reshape(60, 4, 5).permute(2, 0, 1),
}


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_beginning_of_a_tensor_is_what_torch_loads(layout, dtype, order, tmp_path, monkeypatch):
    values = torch.arange(300.0 * 700).reshape(300, 700).div(7).to(dtype)
    state, path = {"model": {"t": LAYOUTS[layout](values)}}, tmp_path / "t.pt"
    if order == "big":
        save_big(state, path, monkeypatch)
    else:
        torch.save(state, path)
    loaded = torch.load(path)["model"]["t"].double().flatten()
    with open_checkpoint(path) as checkpoint:
        ref = checkpoint.tree["model"]["t"]
        assert is_readable(ref)
        found = list(beginning(checkpoint.reader, ref))
    assert found
    assert found == loaded[: len(found)].tolist()


def test_a_negative_view_begins_with_negative_values(tmp_path):
    torch.save({"t": torch._neg_view(torch.tensor([1.0, -2.0]))}, tmp_path / "t.pt")
    with open_checkpoint(tmp_path / "t.pt") as checkpoint:
        assert list(beginning(checkpoint.reader, checkpoint.tree["t"])) == [-1.0, 2.0]

"""EMA weights that are the same as the raw weights: buffers that are copied, and frozen layers."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ckptool.ema import sameness
from ckptool.ema.locate import locate_ema
from ckptool.formats import open_checkpoint

FROZEN = {"0.weight", "0.bias"}
BUFFERS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}  # AveragedModel copies them
AVERAGED = {"1.weight", "1.bias", "2.weight", "2.bias"}


def trained(**options):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    net[0].requires_grad_(requires_grad=False)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), **options)
    for _ in range(3):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
        net(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        ema.update_parameters(net)
    return {"model": net.state_dict(), "ema": ema.state_dict(), "epoch": 3}


@pytest.fixture(name="path")
def _path(tmp_path):
    torch.save(trained(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def told(ckptool, path, *options):
    report = ckptool("inspect", path, "--json", *options).json
    return report["ema"]["candidates"][0].get("same")


def test_inspect_says_how_many_are_averaged(path, ckptool):
    assert told(ckptool, path) == {"compared": 9, "same": 5, "names": sorted_as_stored()}
    shown = ckptool("inspect", path)
    said = "in 4 of 9 tensors; 5 are the same as the raw weights: 0.weight, 0.bias, 1.running_mean"
    assert f"differs    {said} and 2 more\n" in shown.stdout


def sorted_as_stored():
    return [name for name in trained()["model"] if name in FROZEN | BUFFERS]


def test_the_names_are_those_of_tensors_that_are_equal(path, ckptool):
    """The checksums answer as the values do."""
    state = torch.load(path, weights_only=True)
    model, ema = state["model"], state["ema"]
    assert {n for n in model if torch.equal(model[n], ema[f"module.{n}"])} == FROZEN | BUFFERS
    assert set(model) == FROZEN | BUFFERS | AVERAGED


def test_where_all_differ_it_says_so(tmp_path, ckptool):
    state = {"model": {"w": torch.ones(3), "b": torch.ones(2)}}
    torch.save(state | {"ema": {"w": torch.ones(3) * 2, "b": torch.ones(2) * 2}}, tmp_path / "a.pt")
    shown = ckptool("inspect", tmp_path / "a.pt").stdout
    assert "differs    in all 2 tensors from the raw weights\n" in shown


def test_where_all_are_the_same_it_is_told_as_no_ema(tmp_path, ckptool):
    state = trained()["model"]
    torch.save({"model": state, "ema": copy.deepcopy(state)}, tmp_path / "a.pt")
    assert told(ckptool, tmp_path / "a.pt") is None
    assert "differs  " not in ckptool("inspect", tmp_path / "a.pt")


def test_extract_ema_counts_those_that_it_takes(path, ckptool, tmp_path):
    out = tmp_path / "out.safetensors"
    shown = ckptool("extract-ema", path, "-o", out)
    assert "9 from ema; 5 are the same as the raw weights: 0.weight, " in shown.stdout
    report = ckptool("extract-ema", path, "-o", out, "--force", "--match", "1.*", "--json").json
    assert report["same"] == {
        "compared": 5, "same": 3, "names": [n for n in trained()["model"] if n in BUFFERS],
    }  # fmt: skip
    model = ckptool("extract-ema", path, "-o", out, "--force", "--buffers", "model", "--json").json
    assert set(model["same"]["names"]) == FROZEN


@pytest.mark.parametrize("kind", ["views", "no checksums", "other dtype", "safetensors"])
def test_nothing_is_told_that_the_file_does_not_show(kind, tmp_path, ckptool):
    """``--stats`` reads all values and tells it of every file."""
    state, path = trained(), tmp_path / "a.pt"
    if kind == "views":  # of one storage, which has one checksum
        flat = torch.cat([t.float().flatten() for t in state["model"].values()])
        parts = flat.split([t.numel() for t in state["model"].values()])
        shapes = [t.shape for t in state["model"].values()]
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        state["model"] = dict(zip(state["model"], views, strict=True))
        torch.save(state, path)
    elif kind == "no checksums":
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(compute_crc32=False)
        torch.save(state, path)
        torch.serialization.set_crc32_options(before)
    elif kind == "other dtype":
        state["ema"] = {k: v.double() for k, v in state["ema"].items()}
        torch.save(state, path)
    else:
        path = tmp_path / "a.safetensors"
        ema = {f"ema.{n.removeprefix('module.')}": t for n, t in state["ema"].items()}
        del ema["ema.n_averaged"]
        save_file({f"model.{n}": t for n, t in state["model"].items()} | ema, path)
    assert told(ckptool, path) is None
    counted = told(ckptool, path, "--stats")
    if kind in {"views", "other dtype"}:  # of which the views have another dtype too
        assert counted is None
    else:
        assert counted == {"compared": 9, "same": 5, "names": []}
        assert "in 4 of 9 tensors; 5 are the same" in ckptool("inspect", path, "--stats")


def test_the_same_bytes_in_another_order_are_other_values(tmp_path, ckptool):
    square = torch.eye(4) + torch.arange(16.0).reshape(4, 4) / 100
    model = {"w": square, "b": torch.ones(2)}
    ema = {"w": square.clone().T, "b": torch.ones(2) * 1.01}
    torch.save({"model": model, "ema": ema}, tmp_path / "a.pt")
    assert told(ckptool, tmp_path / "a.pt") is None
    assert told(ckptool, tmp_path / "a.pt", "--stats")["same"] == 0


def test_more_tensors_than_it_compares_are_left_alone(path, monkeypatch):
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint)
        found = sameness.sameness(checkpoint, location, location.selected)
        assert found is not None
        assert {*found.same} == FROZEN | BUFFERS
        monkeypatch.setattr(sameness, "MAX_COMPARED", 8)
        assert sameness.sameness(checkpoint, location, location.selected) is None

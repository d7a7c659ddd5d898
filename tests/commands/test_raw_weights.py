"""``#@model`` is the raw weights wherever they lie; what has not begun is no average."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ckptool import load_state_dict
from helpers.making import average_of, resumable, weights
from helpers.paths import FIXTURES
from helpers.tensors import assert_same_tensors, load

EMA = FIXTURES / "ema"
SWAPPED = (
    "lightning/weight_averaging.ckpt", "mmengine/epoch_3.pth", "composer/swapped.pt",
    "mmcv1/epoch_3.pth", "nequip/swapped.ckpt", "torch_ema/mid_evaluation.pt",
)  # fmt: skip

swapped = pytest.mark.parametrize("file", SWAPPED)


def online(file: str):
    return load_file((EMA / file).with_suffix(".online.safetensors"))


@swapped
def test_extracted_from_a_swapped_file(file, ckptool, tmp_path):
    output = tmp_path / "raw.pt"
    done = ckptool("extract-ema", f"{EMA / file}#@model", "-o", output, "--json")
    assert (done.exit_code, done.json["kind"]) == (0, "raw")
    found, wanted = load(output), online(file)
    assert_same_tensors({name: found[name] for name in wanted}, wanted)


@swapped
def test_loaded_from_python(file):
    found, wanted = load_state_dict(EMA / file, "model"), online(file)
    assert_same_tensors({name: found[name] for name in wanted}, wanted)


@swapped
def test_compared_with_the_averages(file, ckptool):
    done = ckptool("diff", f"{EMA / file}#@model", f"{EMA / file}#@ema")
    assert done.exit_code == 1


@swapped
def test_held_against(file, ckptool, tmp_path):
    """A release of the one is not one of the other, and the usual mistake has its name."""
    raw, ema = tmp_path / "raw.safetensors", tmp_path / "averaged.safetensors"
    assert ckptool("extract-ema", f"{EMA / file}#@model", "-o", raw).exit_code == 0
    assert ckptool("extract-ema", EMA / file, "-o", ema).exit_code == 0
    assert ckptool("verify", raw, "--against", f"{EMA / file}#@model").exit_code == 0
    assert ckptool("verify", ema, "--against", f"{EMA / file}#@model").exit_code == 1
    assert ckptool("verify", ema, "--against", EMA / file).exit_code == 0
    mistaken = ckptool("verify", raw, "--against", EMA / file)
    assert mistaken.exit_code == 1
    assert "they are its raw weights" in mistaken


@swapped
def test_their_names_and_shapes(file, ckptool):
    assert ckptool("verify", EMA / file, "--like", f"{EMA / file}#@model").exit_code == 0


def test_where_they_are_gone_the_slot_is_taken_and_that_is_told(ckptool, tmp_path):
    path = EMA / "ultralytics" / "best.pt"
    done = ckptool("extract-ema", f"{path}#@model", "-o", tmp_path / "out.pt", "--json")
    assert [found["rule"] for found in done.json["findings"]].count("CK414") == 1
    assert_same_tensors(load(tmp_path / "out.pt"), load_state_dict(path, "ema"))


def test_equal_slots_are_called_neither(ckptool, tmp_path):
    path = tmp_path / "same.pt"
    torch.save({"model": weights(), "ema": weights()}, path)
    assert ckptool("inspect", path, "--json").json["ema"]["main_slot"] == "unknown"
    assert "raw" not in ckptool("inspect", path)
    copied = ckptool("inspect", EMA / "lightning" / "after_fit.ckpt", "--json").json["ema"]
    (candidate,) = copied["candidates"]
    assert candidate["aliases"] == ["current_model_state"]


# ---------------------------------------------------------------------------------- not begun yet


@pytest.fixture
def waiting(tmp_path):
    """(file, raw weights, initial weights): Lightning's WeightAveraging before its first update."""
    initial, raw = weights(), average_of(average_of(weights()))
    path = tmp_path / "last.ckpt"
    content = {
        "state_dict": initial,
        "current_model_state": raw,
        "averaging_state": {"n_averaged": torch.tensor(0)},
        "callbacks": {"EMAWeightAveraging": {"latest_update_step": 0}},
    }
    torch.save(content | resumable(raw), path)
    return path, raw, initial


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_untrained_weights_are_not_handed_out(command, waiting, ckptool, tmp_path):
    path, *_ = waiting
    refused = ckptool(command, path, "-o", tmp_path / "out.ckpt")
    assert refused.exit_code == 2
    assert "n_averaged is 0" in refused.stderr
    assert not (tmp_path / "out.ckpt").exists()


def test_the_hint_takes_the_raw_weights(waiting, ckptool, tmp_path):
    path, raw, _ = waiting
    hint = ckptool("extract-ema", path, "-o", tmp_path / "out.pt").stderr
    _, _, place = hint.rpartition("ckptool extract-ema ")
    output = tmp_path / "out.pt"
    assert ckptool("extract-ema", place.strip().strip("'"), "-o", output).exit_code == 0
    assert_same_tensors(load(output), raw)


def test_python_gets_the_raw_weights(waiting):
    path, raw, _ = waiting
    assert_same_tensors(load_state_dict(path), raw)
    assert_same_tensors(load_state_dict(path, "model"), raw)


def test_verify_warns_and_fails_when_an_ema_is_required(waiting, ckptool):
    path, *_ = waiting
    told = ckptool("verify", path, "--json").json["findings"]
    assert "current_model_state" in next(f for f in told if f["rule"] == "CK417")["message"]
    assert ckptool("verify", path, "--require", "ema").exit_code == 1
    assert "before the averaging began" in ckptool("inspect", path)


def test_an_average_that_counts_no_update_is_told(ckptool, tmp_path):
    path = tmp_path / "last.pt"
    ema = {"shadow": average_of(weights()), "decay": 0.9, "num_updates": 0}
    torch.save({"model": weights(), "ema": ema}, path)
    report = ckptool("extract-ema", path, "-o", tmp_path / "out.pt", "--json").json
    assert "CK411" in [found["rule"] for found in report["findings"]]


@pytest.mark.parametrize("key", ["ema", "swa_model", "model_ema"])
def test_a_copy_beside_the_model_is_no_average_either(key, ckptool, tmp_path):
    waiting = {f"module.{name}": tensor for name, tensor in average_of(weights()).items()}
    path = tmp_path / "last.pt"
    torch.save({"model": weights(), key: waiting | {"n_averaged": torch.tensor(0)}}, path)
    assert ckptool("extract-ema", path, "-o", tmp_path / "out.pt").exit_code == 2
    assert ckptool("verify", path, "--require", "ema").exit_code == 1

"""A run in float16 is told when its gradient scaler is missing; one in bfloat16 needs none."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from helpers import runs

Settings = argparse.Namespace

FLOAT16 = {
    "a switch": {"args": Settings(lr=1e-3, amp=True)},
    "a switch by name": {"args": {"mixed_precision": "fp16"}},
    "a switch that is on": {"args": Settings(mixed_precision=True, amp=True)},
    "Lightning": {"hyper_parameters": {"precision": "16-mixed"}},
    "Lightning 1": {"hyper_parameters": {"precision": 16}},
    "nested": {"config": {"trainer": {"optim": {"fp16": True}}}},
    "DeepSpeed's form": {"config": {"fp16": {"enabled": True, "loss_scale": 0}}},
    "nanoGPT": {"config": {"dtype": "float16", "device": "cuda"}},
    "at the top": {"fp16": True},
    "Composer": {"config": {"precision": "amp_fp16"}},
    "timm": {"args": Settings(amp=True, amp_dtype="float16")},
    "a dtype": {"args": Settings(autocast_dtype=torch.float16)},
}
OTHERS = {
    "bfloat16": {"args": Settings(amp=True, amp_dtype="bfloat16")},
    "bfloat16 by name": {"args": {"mixed_precision": "bf16"}},
    "bfloat16 by a switch": {"args": {"fp16": False, "bf16": True}},
    "bfloat16 as a dtype": {"args": Settings(amp=True, amp_dtype=torch.bfloat16)},
    "both named": {"args": {"use_amp": True, "dtype": "bfloat16"}},
    "Lightning": {"hyper_parameters": {"precision": "bf16-mixed"}},
    "full precision": {"hyper_parameters": {"precision": "32-true", "fp16_opt_level": "O1"}},
    "off": {"args": {"mixed_precision": "no", "amp": False, "fp16": False}},
    "evaluation only": {"args": {"fp16_full_eval": True, "fp16_backend": "auto"}},
    "a word that holds the letters": {"args": {"example": True, "damp": True, "stamp": "fp16"}},
    "the type of a pretrained model": {"config": {"torch_dtype": "float16"}},
    "nothing": {},
}
SCALERS = {
    "GradScaler": {"scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}},
    "by form": {"anything": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}},
    "Lightning": {"MixedPrecision": {"scale": 65536.0, "growth_factor": 2.0}},
    "Lightning 1": {"native_amp_scaling_state": {"scale": 65536.0}},
    "apex": {"amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}}},
    "timm": {"amp_scaler": {"scale": 65536.0}},
    "not in use on the CPU": {"scaler": {}},
}


def told(ckptool, path):
    output = ckptool("verify", path, "--require", "resume", "--json")
    return [f for f in output.json["findings"] if f["rule"] == "CK524"]


@pytest.fixture
def without_scaler(state):
    del state["scaler"]
    return state


@pytest.mark.parametrize("name", FLOAT16)
def test_a_run_in_float16_without_its_scaler_is_told(name, without_scaler, tmp_path, ckptool):
    path = runs.save(without_scaler | FLOAT16[name], tmp_path)
    (found,) = told(ckptool, path)
    assert (found["severity"], "gradient scaler" in found["message"]) == ("error", True)
    assert "CK524" not in {f["rule"] for f in ckptool("verify", path, "--json").json["findings"]}


@pytest.mark.parametrize("name", OTHERS)
def test_other_precisions_need_none(name, without_scaler, tmp_path, ckptool):
    assert not told(ckptool, runs.save(without_scaler | OTHERS[name], tmp_path))


@pytest.mark.parametrize("name", SCALERS)
def test_a_scaler_is_one_by_any_name(name, without_scaler, tmp_path, ckptool):
    state = without_scaler | FLOAT16["a switch"] | SCALERS[name]
    assert not told(ckptool, runs.save(state, tmp_path))


def test_a_scaler_within_the_optimizer_is_one(without_scaler, tmp_path, ckptool):
    """mmengine and Megatron keep it there."""
    without_scaler["optimizer"]["loss_scaler"] = {"scale": 512.0}
    assert not told(ckptool, runs.save(without_scaler | FLOAT16["a switch"], tmp_path))


def test_a_scaler_that_is_none_is_missing(without_scaler, tmp_path, ckptool):
    assert told(
        ckptool, runs.save(without_scaler | FLOAT16["a switch"] | {"scaler": None}, tmp_path)
    )


def test_a_scaler_of_data_is_none(without_scaler, tmp_path, ckptool):
    rows = {"scaler": {"mean": torch.zeros(4), "scale": torch.ones(4)}}
    assert told(ckptool, runs.save(without_scaler | FLOAT16["a switch"] | rows, tmp_path))


@pytest.fixture
def trainer_folder(state, tmp_path):
    """``checkpoint-20`` as the Hugging Face Trainer writes it."""
    folder = tmp_path / "checkpoint-20"
    folder.mkdir()
    save_file({n: v.clone() for n, v in state["model"].items()}, folder / "model.safetensors")
    torch.save(state["optimizer"], folder / "optimizer.pt")
    torch.save(state["lr_scheduler"], folder / "scheduler.pt")
    torch.save(Settings(fp16=True, bf16=False, output_dir="out"), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 1.0, "global_step": 20}))
    return folder


def findings_of(output):
    documents = output.json if isinstance(output.json, list) else [output.json]
    return [f for document in documents for f in document["findings"]]


def test_the_settings_beside_the_optimizer_count(trainer_folder, ckptool):
    for path in (trainer_folder, trainer_folder / "optimizer.pt"):
        found = findings_of(ckptool("verify", path, "--require", "resume", "--json"))
        (message,) = [f["message"] for f in found if f["rule"] == "CK524"]
        assert "training_args.bin" in message
    torch.save({"scale": 256.0, "growth_factor": 2.0}, trainer_folder / "scaler.pt")
    found = findings_of(ckptool("verify", trainer_folder, "--require", "resume", "--json"))
    assert not [f for f in found if f["rule"] == "CK524"]


def test_the_settings_of_lightning_lie_around_the_checkpoints(without_scaler, tmp_path, ckptool):
    path = runs.save(without_scaler, tmp_path / "checkpoints", "last.ckpt")
    (tmp_path / "hparams.yaml").write_text("lr: 0.1\nprecision: 16-mixed  # on the cluster\n")
    assert "hparams.yaml" in told(ckptool, path)[0]["message"]
    (tmp_path / "hparams.yaml").write_text("lr: 0.1\nprecision: bf16-mixed\n")
    assert not told(ckptool, path)


def test_settings_that_cannot_be_read_say_nothing(without_scaler, tmp_path, ckptool):
    path = runs.save(without_scaler, tmp_path, "last.pt")
    (tmp_path / "training_args.bin").write_bytes(b"no pickle")
    (tmp_path / "config.json").write_text("[" * 100_000)
    (tmp_path / "args.json").mkdir()
    assert not told(ckptool, path)

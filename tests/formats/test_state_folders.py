"""Folders of a training state: diffusers, kohya, SimpleTuner, Lightning, accelerate's engines."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.lightning_folders import META
from ckptool.tensors.as_torch import as_torch
from ckptool.tree.addresses import node_at
from helpers.paths import FIXTURES

SHARDED = FIXTURES / "sharded"

# The truth, a file beside the folder -> the key path of the weights in the folder.
WEIGHTS = {
    "folders/diffusers.raw": ("unet",),
    "folders/diffusers.ema": ("unet_ema",),
    "folders/dreambooth.raw": ("unet",),
    "folders/dreambooth.text_encoder": ("text_encoder",),
    "folders/lora.raw": ("pytorch_lora_weights.safetensors",),
    "folders/kohya.raw": ("model.safetensors",),
    "folders/simpletuner.raw": ("transformer",),
    "folders/simpletuner.ema": ("ema", "diffusion_pytorch_model.safetensors"),
    "folders/several.raw": ("pytorch_model.bin",),
    "folders/several.second": ("pytorch_model_1.bin",),
    "folders/processes.raw": ("model.safetensors",),
    "folders/shards.raw": ("model",),
    "engines/lightning.whole": ("state_dict",),
    "engines/lightning_zero.whole": ("module",),
    "engines/accelerate_zero2.whole": ("pytorch_model", "module"),
    "engines/accelerate_zero3.whole": ("pytorch_model", "module"),
    "engines/accelerate_fsdp.whole": ("pytorch_model_fsdp_0",),
}
CASES = sorted({truth.partition(".")[0] for truth in WEIGHTS})


def folder_of(case):
    (found,) = (SHARDED / case).iterdir()
    return found


def test_each_truth_is_compared():
    files = (p for room in ("folders", "engines") for p in (SHARDED / room).glob("*.safetensors"))
    assert {str(p.relative_to(SHARDED).with_suffix("")) for p in files} == WEIGHTS.keys()


@pytest.mark.parametrize("truth", WEIGHTS)
def test_weights_equal_those_at_the_moment_of_saving(truth):
    wanted = load_file(SHARDED / f"{truth}.safetensors")
    with open_checkpoint(folder_of(truth.partition(".")[0])) as checkpoint:
        table = node_at(checkpoint.tree, WEIGHTS[truth])
        if not all(name in table for name in wanted):  # a DCP of accelerate: {"model": …}
            table = table["model"]
        found = as_torch({name: table[name] for name in wanted}, checkpoint.reader)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("case", CASES)
def test_the_whole_folder_resumes_and_its_files_are_whole(case, ckptool):
    verdict = ckptool("verify", folder_of(case), "--bytes", "--values")
    assert verdict.exit_code == 0


@pytest.mark.parametrize(
    ("case", "facts"),
    [
        ("folders/diffusers", {"global_step": 4}),
        ("folders/lora", {"global_step": 4}),
        ("folders/kohya", {"global_step": 4, "epoch": 1}),
        ("folders/simpletuner", {"global_step": 4, "epoch": 1}),
        ("folders/shards", {"global_step": 4, "epoch": 1}),
        ("engines/lightning", {"global_step": 4, "epoch": 1}),
        ("engines/lightning_zero", {"global_step": 4, "epoch": 1}),
        ("engines/accelerate_zero2", {"global_step": 4}),
    ],
)
def test_progress_is_where_the_trainer_keeps_it(case, facts, ckptool):
    training = ckptool("inspect", folder_of(case), "--json").json["training"]
    assert {name: training.get(name) for name in facts} == facts


@pytest.mark.parametrize(
    ("case", "raw", "ema"),
    [
        ("folders/diffusers", "unet", "unet_ema"),
        ("folders/simpletuner", "transformer", "ema/diffusion_pytorch_model.safetensors"),
    ],
)
def test_the_average_is_told_from_the_raw_weights(case, raw, ema, ckptool, tmp_path):
    report = ckptool("inspect", folder_of(case), "--json").json["ema"]
    assert (report["status"], report["selected"], report["main_slot"]) == ("found", ema, "raw")
    (candidate,) = (c for c in report["candidates"] if c["address"] == ema)
    assert candidate["model"] == raw
    assert candidate["meta"]["decay"] == 0.9
    assert candidate["meta"]["optimization_step"] == 4
    for role in ("ema", "model"):
        out = tmp_path / f"{role}.safetensors"
        assert ckptool("extract-ema", f"{folder_of(case)}#@{role}", "-o", out).exit_code == 0
        wanted = SHARDED / f"{case}.{'ema' if role == 'ema' else 'raw'}.safetensors"
        assert ckptool("diff", out, wanted).exit_code == 0


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_equal_to_itself_and_not_to_another(case, ckptool, tmp_path):
    copied = shutil.copytree(folder_of(case), tmp_path / folder_of(case).name)
    assert ckptool("diff", folder_of(case), copied).exit_code == 0


# ------------------------------------------------------------------- what is, and is no, one folder


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("checkpoint-12", {"global_step": 12}),
        ("step_12", {"global_step": 12}),
        ("epoch_3", {"epoch": 3}),
        ("checkpoint_0", {}),
        ("checkpoint-12-old", {}),
        ("checkpoint-" + "9" * 40, {}),
    ],
)
def test_progress_by_the_name_of_the_folder(name, facts, tmp_path, ckptool):
    copied = shutil.copytree(folder_of("folders/lora"), tmp_path / name)
    training = ckptool("inspect", copied, "--json").json.get("training") or {}
    assert {k: v for k, v in training.items() if k in {"epoch", "global_step"}} == facts


def test_a_file_of_the_progress_is_believed_before_the_name(tmp_path, ckptool):
    copied = shutil.copytree(folder_of("folders/simpletuner"), tmp_path / "checkpoint-99")
    assert ckptool("inspect", copied, "--json").json["training"]["global_step"] == 4


def test_a_run_of_folders_is_a_run(tmp_path, ckptool):
    for step in (4, 8):
        shutil.copytree(folder_of("folders/diffusers"), tmp_path / f"checkpoint-{step}")
    report = ckptool("inspect", tmp_path, "--json").json
    steps = [entry["global_step"] for entry in report["checkpoints"]]
    assert steps == [4, 8]


def test_models_beside_a_trainers_file_are_a_run(tmp_path, ckptool):
    """The Trainer saves no model into a subdirectory: it is somebody's own."""
    shutil.copytree(folder_of("folders/shards"), tmp_path / "run")
    shutil.copytree(folder_of("folders/diffusers") / "unet", tmp_path / "run" / "best")
    report = ckptool("inspect", tmp_path / "run", "--json").json
    assert report["schema"] == "ckptool/inspect/1"
    assert report.get("format") != "folder" or "best" not in json.dumps(report["sections"])


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "optimizer.bin"])
def test_a_damaged_part_is_named(name, tmp_path, ckptool):
    copied = shutil.copytree(folder_of("folders/diffusers"), tmp_path / "checkpoint-4")
    (copied / name).write_bytes((copied / name).read_bytes()[:-40])
    refused = ckptool("inspect", copied)
    assert refused.exit_code == 2
    assert name.rpartition("/")[2] in refused.stderr


def test_a_key_of_lightnings_two_files_is_refused(tmp_path):
    copied = shutil.copytree(folder_of("engines/lightning"), tmp_path / "last.ckpt")
    meta = torch.load(copied / META, weights_only=False)
    torch.save({**meta, "state_dict": {}}, copied / META)
    with pytest.raises(DamagedError, match="state_dict"):
        open_checkpoint(copied)
    torch.save([1], copied / META)
    with pytest.raises(DamagedError, match="no dict"):
        open_checkpoint(copied)

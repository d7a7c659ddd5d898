"""What users reported to other projects, as the smallest files that show it, and what is right.

Each function names the report. Cases that need a library have its genuine files instead.
"""

from __future__ import annotations

import argparse
import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.paths import FIXTURES
from helpers.tensors import assert_same_tensors

GENUINE = FIXTURES / "genuine"


def told(done) -> dict[str, str]:
    """Rule -> severity of what a command found."""
    return {found["rule"]: found["severity"] for found in done.json["findings"]}


def near(state):
    """An average: values near those of a state dict."""
    generator = torch.Generator().manual_seed(2)
    return {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in state.items()}


def trained(steps, *, scheduler=None):
    """A small model, its optimizer after some steps, and a scheduler that went along."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = scheduler(optimizer) if scheduler else None
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 4)).pow(2).mean().backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return model, optimizer, schedule


def random_states():
    return {
        "torch": torch.get_rng_state(), "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }  # fmt: skip


# -------------------------------------------------------------------------- folders of many files


def sharded(folder, *, lacks=(), names=2, listed=lambda _: True):
    """Two shards and their index."""
    folder.mkdir(exist_ok=True)
    tensors = {f"layers.{i}.weight": torch.ones(2, 2) * i for i in range(4)}
    files = [f"model-{i + 1:05d}-of-{names:05d}.safetensors" for i in range(2)]
    weight_map = {name: files[i // 2] for i, name in enumerate(tensors)}
    for file in files:
        kept = {n: t for n, t in tensors.items() if weight_map[n] == file and n not in lacks}
        save_file(kept, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for n, f in weight_map.items() if listed(f)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_an_index_that_maps_a_tensor_to_a_shard_without_it(tmp_path, ckptool):
    """huggingface/huggingface_hub 4728, 4740."""
    folder = sharded(tmp_path / "lacks", lacks=["layers.3.weight"])
    done = ckptool("verify", folder, "--json")
    assert (done.exit_code, told(done)) == (1, {"CK105": "error"})
    assert "layers.3.weight" in done


def test_shards_that_are_not_there(tmp_path, ckptool):
    """Neph0s/CoSER 3: an index of 30 shards beside 15."""
    folder = sharded(tmp_path / "absent")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert told(ckptool("verify", folder, "--json")) == {"CK104": "error"}


def beside(name):
    """A file that the index does not name."""
    return lambda folder: save_file({"old": torch.ones(2)}, folder / name)


def one_shard_listed(folder):
    sharded(folder, listed=lambda file: "00001" in file)


@pytest.mark.parametrize(
    "spoil",
    [beside("model-00003-of-00003.safetensors"), beside("model.safetensors"), one_shard_listed],
    ids=["stale: mflux 603", "stray: mlx-vlm 1464, lerobot 826", "subset: unsloth 7375"],
)
def test_files_that_the_index_does_not_name_are_told(spoil, tmp_path, ckptool):
    folder = sharded(tmp_path / "model")
    assert told(ckptool("verify", folder, "--json")) == {}
    spoil(folder)
    done = ckptool("verify", folder, "--json")
    assert (done.exit_code, told(done)["CK108"]) == (0, "warning")


def test_a_folder_of_the_trainer_is_a_checkpoint_to_resume(ckptool):
    """huggingface/transformers 34053, 11323, 27282; written by the library."""
    run = GENUINE / "hf_trainer" / "run"
    assert ckptool("verify", run / "checkpoint-4", "--require", "resume").exit_code == 0
    assert ckptool("verify", "--latest-valid", run).strip() == str(run / "checkpoint-4")
    for file, rules in (("scheduler.pt", "CK507"), ("rng_state.pth", "CK510,CK511")):
        assert ckptool("verify", run / "checkpoint-4" / file, "--rules", rules).exit_code == 0


def test_placeholders_of_zero3_are_told(tmp_path, ckptool):
    """sediment1024/PhysRAG 3, deepspeedai/DeepSpeed 7900, hiyouga/LlamaFactory 253."""
    full = {f"blocks.{i}.weight": torch.ones(12, 12) for i in range(4)}
    empty = {name: tensor.new_empty(0) if "2" in name else tensor for name, tensor in full.items()}
    torch.save(full, tmp_path / "full.pt")
    torch.save(empty, tmp_path / "merged.pt")
    save_file({n: t.new_empty(0) for n, t in full.items()}, tmp_path / "adapter.safetensors")
    for file in ("merged.pt", "adapter.safetensors"):
        assert told(ckptool("verify", tmp_path / file, "--json"))["CK606"] == "warning"
        assert "CK606" in told(ckptool("inspect", tmp_path / file, "--json"))
    compared = ckptool("verify", tmp_path / "merged.pt", "--like", tmp_path / "full.pt", "--json")
    assert told(compared)["CK603"] == "error"


# ------------------------------------------------------------------------------- EMA that is hidden


def test_names_without_dots_and_a_glued_index_beside_a_table(tmp_path, ckptool):
    """ai2cm/ace 1009, 349: a tracker of a list of modules."""
    raw = {"conv1.weight": torch.randn(4, 2), "conv1.bias": torch.randn(4),
           "conv11.weight": torch.randn(4, 4), "bn.running_mean": torch.randn(4)}  # fmt: skip
    table = {f"0.{name}": f"0{name.replace('.', '')}" for name in list(raw)[:3]}
    averages = near({table[f"0.{name}"]: raw[name] for name in list(raw)[:3]})
    ema = {
        "decay": torch.tensor(0.9), "num_updates": torch.tensor(40, dtype=torch.int32),
        "faster_decay_at_start": True, "module_name_to_ema_name": table, "ema_params": averages,
    }  # fmt: skip
    path, output = tmp_path / "ckpt.tar", tmp_path / "out.safetensors"
    torch.save({"stepper": {"step": {"module": raw}}, "ema": ema, "epoch": 4}, path)
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    expected = {name: averages.get(table.get(f"0.{name}"), raw[name]) for name in raw}
    assert_same_tensors(load_file(output), expected)
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["address"] == "ema/ema_params"
    assert candidate["meta"]["num_updates"] == 40
    assert candidate["meta"]["decay"] == pytest.approx(0.9)


@pytest.mark.parametrize("branches", [["Default"], ["metal", "water"]])
def test_a_model_behind_a_wrapper_of_branches(branches, tmp_path, ckptool):
    """deepmodeling/deepmd-kit 5420."""
    shapes = {"descriptor.0.weight": (8, 4), "fitting.0.weight": (8, 8), "fitting.0.bias": (8,)}
    raw = {f"{b}.{n}": torch.randn(*s) for b in branches for n, s in shapes.items()}
    buffers = {f"model.{b}.out_bias": torch.zeros(1, 3, 1) for b in branches}
    averages = near(raw)
    named = {n.removeprefix("Default."): t for n, t in averages.items()}
    ema = {"decay": 0.98, "model": named, "validation_state": {}}
    model = {**{f"model.{n}": t for n, t in raw.items()}, **buffers, "_extra_state": {"step": 60}}
    path, output = tmp_path / "model.ckpt-60.pt", tmp_path / "out.safetensors"
    torch.save({"model": model, "ema": ema}, path)
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    expected = {**{f"model.{n}": t for n, t in averages.items()}, **buffers}
    assert_same_tensors(load_file(output), expected)
    assert ckptool("promote-ema", path, "-o", tmp_path / "p.pt").exit_code == 0


def test_buffers_that_no_update_reached(tmp_path, ckptool):
    """FlyreelAI/sesemi 36, CuriousAI/mean-teacher 9, huggingface/pytorch-image-models 245."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    fresh = {n: t.clone() for n, t in model.state_dict().items() if n.startswith("1.")}
    for _ in range(20):
        model(torch.randn(8, 4) * 3 + 5)
    raw = model.state_dict()
    average = near({n: t for n, t in raw.items() if t.is_floating_point()}) | {
        n: fresh[n] for n in ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    }
    path, output = tmp_path / "last.ckpt", tmp_path / "out.safetensors"
    torch.save({"state_dict": raw, "ema_state_dict": average}, path)
    found = told(ckptool("verify", path, "--require", "ema", "--json"))
    assert found["CK416"] == "warning"
    assert "CK405" not in found  # the parameters are a good average
    taken = ckptool("extract-ema", path, "-o", output, "--json")
    assert (taken.exit_code, told(taken)["CK416"]) == (0, "warning")
    done = ckptool("extract-ema", path, "-o", output, "--force", "--buffers", "model")
    assert done.exit_code == 0
    assert torch.equal(load_file(output)["1.running_var"], raw["1.running_var"])


def test_values_that_were_clamped_to_float16(tmp_path, ckptool):
    """ultralytics/ultralytics 24731, 24615."""
    ema = {"0.weight": torch.tensor([1.0, 65504.0, -65504.0, 2.0]).half()}
    torch.save({"ema": ema, "updates": 4000, "epoch": 12}, tmp_path / "last.pt")
    done = ckptool("verify", tmp_path / "last.pt", "--values", "--json")
    assert told(done)["CK307"] == "warning"
    assert "0.weight" in done


SIBLINGS = {
    "epoch_24.pth: BEVDet, yuantianyuan01/PreSight 6": ("epoch_24.pth", "epoch_24_ema.pth"),
    "nnet.pth: baofff/U-ViT 20": ("nnet.pth", "nnet_ema.pth"),
    "checkpoint5.pt: kanyun-inc/fairseq-gec 9": ("checkpoint5.pt", "checkpointema5.pt"),
}


@pytest.mark.parametrize("report", SIBLINGS)
def test_an_ema_in_a_file_beside(report, tmp_path, ckptool):
    ours, theirs = SIBLINGS[report]
    raw = trained(3)[0].state_dict()
    torch.save({"model": raw}, tmp_path / ours)
    torch.save({"model": near(raw)}, tmp_path / theirs)
    output = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", tmp_path / ours, "-o", output).exit_code == 0
    assert_same_tensors(load_file(output), near(raw))


def test_an_ema_in_a_folder_beside_the_model(tmp_path, ckptool):
    """PKU-YuanGroup/Open-Sora-Plan 524."""
    raw, folder = trained(3)[0].state_dict(), tmp_path / "checkpoint-5500"
    for name, state in (("model", raw), ("model_ema", near(raw))):
        (folder / name).mkdir(parents=True)
        save_file(state, folder / name / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text('{"_class_name": "OpenSoraT2V_v1_3"}')
    output = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", folder, "-o", output).exit_code == 0
    assert_same_tensors(load_file(output), near(raw))


# ---------------------------------------------------------------------------- what a resume needs


def test_a_random_state_that_was_moved_to_the_gpu(tmp_path, ckptool):
    """pytorch/ignite 2076, lanl/hippynn 12; ignite keeps the three states as a list."""
    model, optimizer, _ = trained(5)
    states = [random.getstate(), torch.get_rng_state(), np.random.get_state()]  # noqa: NPY002
    content = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "trainer": {"iteration": 5, "max_epochs": 9, "epoch_length": 5, "rng_states": states},
    }  # fmt: skip
    path = tmp_path / "last.pt"
    torch.save(content, path)
    resume = ("--require", "resume", "--ignore-rules", "CK507", "--json")
    assert ckptool("verify", path, *resume).exit_code == 0
    states[1] = states[1].long()  # what a cast on its way there makes of it
    torch.save(content, path)
    assert told(ckptool("verify", path, *resume))["CK512"] == "error"


@pytest.mark.parametrize(
    "settings",
    [{"args": argparse.Namespace(mixed_precision=True)}, {"args": {"fp16": True}},
     {"hyper_parameters": {"precision": "16-mixed"}}],
    ids=["a plain loop", "accelerate", "Lightning"],
)  # fmt: skip
def test_a_run_in_float16_without_its_scaler(settings, tmp_path, ckptool):
    """facebookresearch/co-tracker 101, ultralytics/ultralytics 22189."""
    model, optimizer, schedule = trained(5, scheduler=torch.optim.lr_scheduler.LinearLR)
    content = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 5,
        "lr_scheduler": schedule.state_dict(), "rng": random_states(), **settings,
    }  # fmt: skip
    torch.save(content, tmp_path / "last.pt")
    done = ckptool("verify", tmp_path / "last.pt", "--require", "resume", "--json")
    assert (done.exit_code, told(done)["CK524"]) == (1, "error")


def test_the_index_of_the_last_iteration(tmp_path, ckptool):
    """facebookresearch/maskrcnn-benchmark 145, dinov2 544: after 1000 steps it says 999."""
    model, optimizer, schedule = trained(
        1000, scheduler=lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [600])
    )
    content = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(), "iteration": 999,
    }  # fmt: skip
    path = tmp_path / "model_0000999.pth"
    torch.save(content, path)
    options = ("--require", "resume", "--ignore-rules", "CK510,CK511", "--json")
    done = ckptool("verify", path, *options)
    assert (done.exit_code, "CK506" in told(done)) == (0, False)


# ------------------------------------------------------------------------------- names, containers


def test_wrappers_in_any_order(tmp_path, ckptool):
    """``_forward_module.`` of a Lightning strategy around ``torch.compile``'s ``_orig_mod.``."""
    raw = {f"net.{n}": t for n, t in trained(1)[0].state_dict().items()}
    wrapped = {f"_forward_module._orig_mod.{name}": tensor for name, tensor in raw.items()}
    path, output = tmp_path / "last.ckpt", tmp_path / "out.safetensors"
    torch.save({"state_dict": wrapped, "ema_state_dict": near(raw)}, path)
    torch.save(raw, tmp_path / "module.pt")
    for operand, wanted in ((path, near(raw)), (f"{path}#@model", raw)):
        done = ckptool("extract-ema", operand, "--names", "bare", "-o", output, "--force")
        assert done.exit_code == 0
        assert_same_tensors(load_file(output), wanted)
    done = ckptool("verify", path, "--like", tmp_path / "module.pt", "--json")
    assert "drop the wrappers' parts of names" in done


@pytest.mark.parametrize(
    ("stored", "wanted", "rename"),
    [
        ("base_model.model.layers.{}.q.lora_A.weight",
         "base_model.model.model.layers.{}.q.lora_A.weight",
         "rename base_model.* to base_model.model.*"),
        ("blocks.{}.q.lora_A.weight", "blocks.{}.q.lora_A.default_0.weight",
         "rename lora_A. to lora_A.default_0."),
    ],
)  # fmt: skip
def test_adapters_under_other_names(stored, wanted, rename, tmp_path, ckptool):
    for name, pattern in (("saved", stored), ("wanted", wanted)):
        state = {pattern.format(i): torch.ones(2, i + 1) for i in range(6)}
        save_file(state, tmp_path / f"{name}.safetensors")
    like = ("--like", tmp_path / "wanted.safetensors", "--json")
    done = ckptool("verify", tmp_path / "saved.safetensors", *like)
    assert (done.exit_code, told(done)["CK604"]) == (1, "error")
    assert rename in done


def test_small_views_of_large_storages(tmp_path, ckptool):
    """A file of megabytes that holds kilobytes of weights."""
    large = torch.randn(1000, 1000)
    state = {"a": large[0, :10], "b": large[5:7, :5]}
    torch.save({"model": state}, tmp_path / "sliced.pt")
    torch.save({"model": {n: t.clone() for n, t in state.items()}}, tmp_path / "cloned.pt")
    output = tmp_path / "out.safetensors"
    done = ckptool("extract-ema", f"{tmp_path / 'sliced.pt'}#@model", "-o", output)
    assert done.exit_code == 0
    assert output.stat().st_size < 10_000
    assert ckptool("diff", tmp_path / "sliced.pt", tmp_path / "cloned.pt").exit_code == 0


def test_a_quantized_model_is_written_whole_or_refused_by_name(tmp_path, ckptool):
    """pytorch/ao 2478, 456, 630; written by the library."""
    files = sorted((GENUINE / "torchao").glob("*.pt"))
    assert files
    for path in files:
        verdict = ckptool("verify", path, "--json")
        assert "CK201" not in told(verdict)
        done = ckptool("extract-ema", f"{path}#@model", "-o", tmp_path / "out.safetensors")
        assert done.exit_code in {0, 2}
        assert (tmp_path / "out.safetensors").exists() == (done.exit_code == 0)
        (tmp_path / "out.safetensors").unlink(missing_ok=True)

"""The resume certificate: by the genuine files of each trainer, and by what is taken away."""

from __future__ import annotations

import argparse
import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckptool.contents.trainers import PARTS, PLAIN, TRAINERS
from helpers import runs
from helpers.paths import FIXTURES

GENUINE = FIXTURES / "genuine"

# Fixture -> the trainer, and the parts that a resume of it loses.
TOLD = {
    "accelerate/checkpoints/checkpoint_0": ("accelerate", {"progress", "data"}),
    "composer/plain.pt": ("Composer", set()),
    "composer/swapped.pt": ("Composer", set()),
    "deepspeed/zero1": ("DeepSpeed", {"rng", "data"}),
    "deepspeed/zero2": ("DeepSpeed", {"rng", "data"}),
    "deepspeed/zero3": ("DeepSpeed", {"rng", "data"}),
    "fastai/model.pth": ("fastai", {"progress", "rng", "data"}),
    "hf_trainer/run/checkpoint-4": ("Hugging Face Trainer", set()),
    "peft/run/checkpoint-4": ("Hugging Face Trainer", set()),
    "ignite/checkpoint_12.pt": ("ignite", set()),
    "lightning/last.ckpt": ("Lightning", {"rng", "data"}),
    "lightning/ema.ckpt": ("Lightning", {"rng", "data"}),
    "mmengine/plain_3.pth": ("mmengine", {"rng", "data"}),
    "mmengine/epoch_3.pth": ("mmengine", {"rng", "data"}),
    "speechbrain/save/CKPT+last": ("SpeechBrain", {"rng", "data"}),
    "timm/last.pth.tar": ("timm", {"rng", "data"}),
    "torchrl/trainer.pt": ("torchrl", {"rng", "data"}),
    "ultralytics/last.pt": ("ultralytics", {"weights", "rng", "data"}),
}
# Fixtures from which no run goes on, with a rule that says why.
NOT = {
    "deepspeed/zero3_16bit.pt": "CK501",
    "fastai/weights.pth": "CK501",
    "fsdp2/checkpoint": "CK501",
    "torch_dcp/checkpoint": "CK501",
    "ultralytics/stripped.pt": "CK501",
    "sb3/ppo/policy.optimizer.pth": "CK519",
}


def asked(ckptool, path, *options):
    return ckptool("verify", path, "--require", "resume", "--json", *options).json


def lost_by(report):
    return {p["part"] for p in report["resume"]["parts"] if p["state"] == "lost"}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_trainer_wrote_resumes_and_says_what_is_lost(name, ckptool):
    report = asked(ckptool, GENUINE / name)
    resume = report["resume"]
    assert (report["ok"], resume["trainer"], lost_by(report)) == (True, *TOLD[name])
    assert resume["verdict"] == ("with-losses" if TOLD[name][1] else "to-the-bit")
    assert len(resume["lost"]) == len(TOLD[name][1])
    assert [part["part"] for part in resume["parts"]] == list(PARTS)


@pytest.mark.parametrize("name", NOT)
def test_weights_or_an_optimizer_alone_do_not(name, ckptool):
    report = asked(ckptool, GENUINE / name)
    assert (report["ok"], report["resume"]["verdict"]) == (False, "no")
    assert NOT[name] in {f["rule"] for f in report["findings"] if f["severity"] == "error"}


def test_a_plain_loop_goes_on_where_it_was_saved_between_epochs(state, tmp_path, ckptool):
    path = runs.save(state, tmp_path)
    resume = asked(ckptool, path)["resume"]
    assert (resume["verdict"], resume["trainer"], resume["lost"]) == ("to-the-bit", PLAIN.name, [])
    assert "between two epochs" in resume["provided"][0]
    shown = ckptool("verify", path, "--require", "resume").stdout
    assert "\nResume: yes, to the bit  (a plain training loop)\n  provided that" in shown
    sampler = runs.save(state | {"sampler": {"position": 3}}, tmp_path, "mid.pth")
    assert asked(ckptool, sampler)["resume"]["provided"] == []


def test_a_parameter_without_a_state_is_a_condition(state, tmp_path, ckptool):
    """It may be one that never had a gradient, or its moments may be lost: the file cannot tell."""
    optimizer = next(v for v in state.values() if isinstance(v, dict) and "param_groups" in v)
    optimizer["state"].pop(next(iter(optimizer["state"])))
    resume = asked(ckptool, runs.save(state, tmp_path))["resume"]
    assert "never had a gradient" in resume["provided"][-1]


def test_nobody_is_told_who_did_not_ask(state, tmp_path, ckptool):
    path = runs.save(state, tmp_path)
    assert "resume" not in ckptool("verify", path, "--json").json
    assert "Resume:" not in ckptool("verify", path).stdout


def test_a_file_that_cannot_be_opened_does_not_resume(state, tmp_path, ckptool):
    path = runs.save(state, tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    resume = asked(ckptool, path)["resume"]
    assert (resume["verdict"], resume["goes_on"], resume["without"]) == ("no", False, [])
    shown = ckptool("verify", path, "--require", "resume").stdout
    assert "\nResume: no, because of 1 error\n" in shown
    assert shown.count("truncated") == shown.count("CK") == 1, "one fault is told once"
    assert "\nfailed: 1 error, 0 ok; " in shown


def test_what_was_ignored_is_told_as_lost(state, tmp_path, ckptool):
    for key in ("rng_state", "py_rng_state"):
        del state[key]
    path = runs.save(state, tmp_path)
    assert asked(ckptool, path)["resume"]["verdict"] == "no"
    report = asked(ckptool, path, "--ignore-rules", "CK510,CK511")
    assert (report["ok"], report["resume"]["verdict"]) == (True, "with-losses")
    assert report["resume"]["lost"] == ["the random state of torch and python starts again"]


LACKS = {  # part -> the keys to leave out, the rules that miss it, and the loss
    "torch's and Python's states": (
        ("rng_state", "py_rng_state"), ["CK510", "CK511"],
        "the random state of torch and python starts again",
    ),
    "all random states": (
        ("rng_state", "py_rng_state", "np_rng_state"), ["CK510", "CK511"],
        "the random states start again from the seed: dropout and augmentation draw other numbers",
    ),
    "the scheduler": (("lr_scheduler",), ["CK507"], "the learning rate starts again"),
    "progress": (
        ("epoch", "global_step"), ["CK513"], "the count of epochs and steps starts again at 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", LACKS)
def test_a_run_goes_on_without_a_part_that_only_makes_it_another_one(
    part, state, tmp_path, ckptool
):
    """The exit code is that of the requirement: the run could have stored it."""
    keys, rules, loss = LACKS[part]
    path = runs.save({k: v for k, v in state.items() if k not in keys}, tmp_path)
    shown = ckptool("verify", path, "--require", "resume")
    assert shown.exit_code == 1
    accept = f"--ignore-rules {','.join(rules)}"
    assert "\nResume: yes, but not exactly the same  (" in shown.stdout
    assert f"\n  lost  {loss}\n" in shown.stdout
    assert f"to accept the loss: {accept}\n" in shown.stdout
    resume = asked(ckptool, path)["resume"]
    assert (resume["verdict"], resume["goes_on"], resume["without"]) == ("no", True, rules)
    accepted = asked(ckptool, path, *accept.split())
    assert (accepted["ok"], accepted["resume"]["verdict"]) == (True, "with-losses")


def test_a_run_does_not_go_on_where_more_is_wrong(state, tmp_path, ckptool):
    del state["optimizer"], state["rng_state"]
    resume = asked(ckptool, runs.save(state, tmp_path))["resume"]
    assert (resume["goes_on"], resume["without"]) == (False, ["CK510"])


@pytest.mark.parametrize(("field", "name"), [("np_rng_state", "numpy"), ("py_rng_state", "Python")])
def test_a_random_state_that_was_left_out_is_a_condition(field, name, state, tmp_path, ckptool):
    """The run goes on to the bit if it never draws from it: the file cannot tell."""
    del state[field]
    path = runs.save(state, tmp_path)
    for options in ((), ("--ignore-rules", "CK531")):
        resume = asked(ckptool, path, *options)["resume"]
        assert (resume["verdict"], resume["lost"]) == ("to-the-bit", [])
        assert f"nothing in the run draws from {name}'s random generator" in resume["provided"]


def test_a_scheduler_that_never_was_is_not_asked_for(state, tmp_path, ckptool):
    """torch's schedulers write ``initial_lr`` into the groups of their optimizer."""
    del state["lr_scheduler"]
    without = copy.deepcopy(state)
    for group in without["optimizer"]["param_groups"]:
        del group["initial_lr"]
    assert asked(ckptool, runs.save(without, tmp_path))["ok"]
    report = asked(ckptool, runs.save(state, tmp_path))
    assert (report["ok"], lost_by(report)) == (False, {"scheduler"})


# ------------------------------------------------------------------------------- other trainers

SAVED = {
    "mmcv": lambda s: {
        "meta": {"mmcv_version": "1.7.0", "epoch": 4, "iter": 20},
        "state_dict": s["model"], "optimizer": s["optimizer"],
    },
    "YOLO": lambda s: {
        "epoch": 3, "best_fitness": 0.5, "model": s["model"], "ema": s["ema"]["state_dict"],
        "updates": 20, "optimizer": s["optimizer"], "opt": argparse.Namespace(lr0=0.01),
    },
    "YOLOX": lambda s: {
        "start_epoch": 4, "model": s["model"], "optimizer": s["optimizer"],
        "best_ap": 0.4, "curr_ap": 0.4,
    },
    "fairseq": lambda s: {
        "model": s["model"], "last_optimizer_state": s["optimizer"],
        "optimizer_history": [{"num_updates": 20, "lr_scheduler_state": {"best": None}}],
        "extra_state": {"train_iterator": {"epoch": 4, "iterations_in_epoch": 5}},
    },
    "ignite": lambda s: {
        "model": s["model"], "optimizer": s["optimizer"], "lr_scheduler": s["lr_scheduler"],
        "trainer": {"epoch_length": 5, "max_epochs": 9, "iteration": 20},
    },
    "detectron2": lambda s: {
        "model": s["model"], "optimizer": s["optimizer"], "scheduler": s["lr_scheduler"],
        "trainer": {"iteration": 19, "hooks": {"PeriodicCheckpointer": {}}}, "iteration": 19,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_a_trainer_is_told_by_its_keys(name, state, tmp_path, ckptool):
    report = asked(ckptool, runs.save(SAVED[name](state), tmp_path))
    assert (report["ok"], report["resume"]["trainer"]) == (True, name)


def test_torchtitan_keeps_the_position_in_the_data(state, tmp_path, ckptool):
    """Its weights are at the top of the checkpoint, its optimizer has flat keys."""
    names = ("stem.weight", "stem.bias", "norm.weight", "norm.bias", "head.weight", "head.bias")
    flat = {
        f"state.{name}.{slot}": value
        for name, moments in zip(names, state["optimizer"]["state"].values(), strict=True)
        for slot, value in moments.items()
    } | {f"param_groups.{name}.lr": 0.01 for name in names}
    saved = state["model"] | {
        "optimizer": flat, "lr_scheduler": state["lr_scheduler"],
        "dataloader": {"dp_rank_0": {"position": 12}},
        "train_state": {"step": torch.tensor(20), "ntokens_seen": torch.tensor(640)},
    }  # fmt: skip
    dcp.save(saved, checkpoint_id=tmp_path / "step-20", no_dist=True)
    report = asked(ckptool, tmp_path / "step-20")
    assert (report["ok"], report["resume"]["trainer"]) == (True, "torchtitan")
    assert lost_by(report) == {"rng"}


def test_every_row_is_tried_and_names_parts_that_there_are():
    tried = {trainer for trainer, _ in TOLD.values()} | SAVED.keys() | {"torchtitan"}
    assert {row.name for row in TRAINERS} == tried
    for row in TRAINERS:
        assert {*row.never, *row.remade, *row.own} <= set(PARTS)


def test_the_ranks_of_a_folder_are_counted(tmp_path, ckptool):
    copied("accelerate/checkpoints/checkpoint_0", tmp_path)
    other = tmp_path / "random_states_1.pkl"
    other.write_bytes((tmp_path / "random_states_0.pkl").read_bytes())
    resume = asked(ckptool, tmp_path)["resume"]
    assert resume["processes"] == 2
    assert resume["provided"][:2] == [
        "the script registers objects for checkpointing: 1, as many as are stored",
        "it goes on with 2 processes, as it was saved",
    ]


def copied(name, folder):
    for path in (GENUINE / name).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_settings_that_nothing_reads_again_stop_no_resume(tmp_path, ckptool):
    """The Trainer writes ``training_args.bin`` and never reads it."""
    folder = copied("hf_trainer/run/checkpoint-4", tmp_path)
    settings = folder / "training_args.bin"
    settings.write_bytes(settings.read_bytes()[:900])
    report = asked(ckptool, folder)
    assert (report["ok"], report["resume"]["verdict"]) == (True, "to-the-bit")
    told = [f for f in report["findings"] if f["severity"] == "warning"]
    assert any("training_args.bin" in f["address"] for f in told)
    assert not ckptool("verify", folder, "--require", "intact", "--json").json["ok"]


def test_an_engine_within_an_epoch_loses_its_random_states(tmp_path, ckptool):
    """ignite restores them before it fetches the data, which draws from them."""
    state = torch.load(GENUINE / "ignite" / "checkpoint_12.pt", weights_only=False)
    assert state["trainer"]["epoch_length"] == 4
    state["trainer"]["iteration"] = 11
    report = asked(ckptool, runs.save(state, tmp_path), "--ignore-rules", "CK506,CK523")
    assert lost_by(report) == {"rng"}
    assert "in the epoch that has begun" in report["resume"]["lost"][0]

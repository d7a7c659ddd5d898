"""``--latest-valid`` and ``--best`` on folders of trainers, and on what killed jobs leave."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from helpers import runs
from helpers.paths import FIXTURES

GENUINE = FIXTURES / "genuine"
LATEST = ("verify", "--latest-valid", "--require", "resume")


def hf_run(folder: Path, steps=(2, 4), losses=()) -> Path:
    """An output folder of the Hugging Face Trainer."""
    for step, loss in zip(steps, losses or [0.0] * len(steps), strict=True):
        copy = folder / f"checkpoint-{step}"
        shutil.copytree(GENUINE / "hf_trainer" / "run" / f"checkpoint-{min(step, 4)}", copy)
        state = json.loads((copy / "trainer_state.json").read_text())
        state["log_history"].append({"step": step, "epoch": step / 4, "eval_loss": loss})
        (copy / "trainer_state.json").write_text(json.dumps(state))
    return folder


def deepspeed_run(folder: Path) -> Path:
    for step in (1, 2):
        shutil.copytree(GENUINE / "deepspeed" / "zero2" / "global_step1",
                        folder / f"global_step{step}")  # fmt: skip
    for step in (1, 2):  # both state step 1
        os.utime(folder / f"global_step{step}", (step, step))
    (folder / "latest").write_text("global_step2")
    return folder


def lightning_run(folder: Path) -> Path:
    folder.mkdir()
    for name in ("epoch=2-step=12.ckpt", "last.ckpt"):
        shutil.copy(GENUINE / "lightning" / "last.ckpt", folder / name)
    return folder


def speechbrain_run(folder: Path) -> Path:
    return Path(shutil.copytree(GENUINE / "speechbrain" / "save", folder))


def dcp_run(folder: Path, state) -> Path:
    for step in (10, 20):
        saved = state | {"global_step": step}
        dcp.save(saved, checkpoint_id=folder / f"step-{step}", no_dist=True)
    return folder


def chosen(ckptool, *args):
    output = ckptool(*args)
    assert output.exit_code == 0, output.stderr
    return Path(output.stdout.rstrip("\n")).name, output.stderr


@pytest.mark.parametrize(
    ("make", "name"),
    [(hf_run, "checkpoint-4"), (deepspeed_run, "global_step2"), (lightning_run, "last.ckpt"),
     (speechbrain_run, "CKPT+last")],
)  # fmt: skip
def test_the_newest_of_a_trainers_folder(make, name, tmp_path, ckptool):
    folder = make(tmp_path / "run")
    if make is lightning_run:  # both are of one step: the one that was written last
        (folder / "last.ckpt").touch()
    assert chosen(ckptool, *LATEST, folder) == (name, "")


def test_a_directory_of_one_checkpoint_is_the_answer_itself(tmp_path, ckptool):
    """Never one of its files: a script would resume from ``rng_state.pth``."""
    folder = hf_run(tmp_path / "run") / "checkpoint-4"
    assert ckptool(*LATEST, folder).stdout == f"{folder}\n"
    one = shutil.copytree(GENUINE / "deepspeed" / "zero2", tmp_path / "zero")
    assert ckptool(*LATEST, one).stdout == f"{one}\n"


@pytest.mark.parametrize("missing", ["trainer_state.json", "rng_state.pth", "optimizer.pt"])
def test_a_save_of_the_trainer_that_was_not_finished(missing, tmp_path, ckptool):
    folder = hf_run(tmp_path / "run")
    (folder / "checkpoint-4" / missing).unlink()
    name, told = chosen(ckptool, *LATEST, folder)
    assert name == "checkpoint-2"
    assert told.startswith(f"skipped {folder / 'checkpoint-4'}: ")
    report = ckptool(*LATEST, folder, "--json").json
    assert [Path(each["path"]).name for each in report["passed_over"]] == ["checkpoint-4"]


def test_a_file_that_was_cut_is_passed_over_with_the_reason(tmp_path, ckptool):
    folder = hf_run(tmp_path / "run")
    optimizer = folder / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:2000])
    name, told = chosen(ckptool, *LATEST, folder)
    assert name == "checkpoint-2"
    assert "checkpoint-4: " in told
    assert "optimizer.pt" in told


def test_a_distributed_checkpoint_without_its_metadata_is_passed_over(tmp_path, ckptool):
    """The metadata is written last, under another name that is then changed."""
    state = runs.trained()
    state.pop("np_rng_state")  # DCP keeps no arrays of numpy that a setter takes
    folder = dcp_run(tmp_path / "run", state)
    options = ("--ignore-rules", "CK511,CK506,CK523")
    assert chosen(ckptool, *LATEST, folder, *options) == ("step-20", "")
    (folder / "step-20" / ".metadata").unlink()
    name, told = chosen(ckptool, *LATEST, folder, *options)
    assert (name, "not finished" in told) == ("step-10", True)


def test_where_none_passes_a_loss_that_can_be_accepted_has_its_option(tmp_path, ckptool):
    """A plain loop without RNG states: it goes on, and ``--ignore-rules`` accepts it."""
    state = {k: v for k, v in runs.trained().items() if not k.endswith("rng_state")}
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (10, 20):
        torch.save(state | {"global_step": step}, folder / f"step{step}.pt")
    shutil.copy(folder / "step10.pt", folder / "step30.pt")
    broken = state | {"model": {n: t * float("nan") for n, t in state["model"].items()}}
    torch.save(broken | {"global_step": 30}, folder / "step30.pt")
    asked = ("verify", "--latest-valid", "--require", "resume,finite", folder)
    none = ckptool(*asked)
    assert (none.exit_code, none.stdout) == (1, "")
    (hint,) = (line for line in none.stderr.splitlines() if "to accept" in line)
    before, words = hint.split("; to accept it, add ")
    assert before == f"hint: a run goes on from {folder / 'step20.pt'}, with a loss"
    assert chosen(ckptool, *asked, *words.split())[0] == "step20.pt"
    (folder / "step10.pt").unlink()
    (folder / "step20.pt").unlink()
    assert "--ignore-rules" not in ckptool(*asked).stderr


# ------------------------------------------------------------------- what ckptool made of others


@pytest.fixture
def run(tmp_path, ckptool):
    """Two checkpoints of a run, and in its directory what every command makes of them."""
    folder = tmp_path / "run"
    for step, loss in ((10, 0.5), (20, 0.4)):
        state = {**runs.trained(), "global_step": step, "epoch": 1, "val_stats": {"loss": loss}}
        runs.save(state, folder, f"step{step}.pt")
    newest = folder / "step20.pt"
    for line in (
        ("extract-ema", newest),
        ("convert", f"{newest}#@model", "-o", folder / "weights.safetensors"),
        ("convert", newest, "--drop", "scaler", "-o", folder / "step30.pt"),
        ("promote-ema", newest, "-o", folder / "step40.pt"),
    ):
        assert ckptool(*line).exit_code == 0
    return folder


DERIVED = {"step20.ema.safetensors", "weights.safetensors", "step30.pt", "step40.pt"}


@pytest.mark.parametrize("option", [("--latest-valid",), ("--best", "val_stats/loss:min")])
def test_what_ckptool_made_of_others_is_never_chosen(option, run, ckptool):
    """The files in its directory are newer by the clock, and of the same step."""
    name, said = chosen(ckptool, "verify", *option, run)
    assert name == "step20.pt"
    assert f"{run / 'step20.ema.safetensors'}: ckptool extract-ema made it of step20.pt" in said
    report = ckptool("verify", *option, run, "--json").json
    assert {Path(each["path"]).name for each in report["passed_over"]} == DERIVED


def test_a_checkpoint_that_was_promoted_in_place_is_one_of_the_run(run, ckptool):
    assert ckptool("promote-ema", run / "step20.pt", "--in-place").exit_code == 0
    assert chosen(ckptool, "verify", "--latest-valid", run)[0] == "step20.pt"


def test_a_directory_of_nothing_but_such_files_is_a_run(run, ckptool):
    for path in (run / "step10.pt", run / "step20.pt"):
        path.unlink()
    name, said = chosen(ckptool, "verify", "--latest-valid", run)
    assert (name in DERIVED, said) == (True, "")


@pytest.mark.parametrize("options", [(), ("--last", "2"), ("--weights", "1,3")], ids=str)
def test_an_average_leaves_them_out_and_says_so(options, run, ckptool, tmp_path):
    done = ckptool("average", run, "--only", "ema", *options, "-o", tmp_path / "mean.pt", "--json")
    assert done.exit_code == 0
    assert [Path(each["path"]).name for each in done.json["sources"]] == ["step10.pt", "step20.pt"]
    assert {Path(path).name for path in done.json["derived"]} == DERIVED
    shown = ckptool("average", run, "--only", "ema", "-o", tmp_path / "new.pt", "--dry-run")
    assert "left out" in shown
    assert "ckptool extract-ema made it of step20.pt" in shown


def test_an_average_of_one_that_is_left_names_those_that_do_not_count(run, ckptool, tmp_path):
    (run / "step10.pt").unlink()
    done = ckptool("average", run, "--only", "ema", "-o", tmp_path / "mean.pt")
    assert done.exit_code == 2
    assert "at least two checkpoints; 4 that ckptool made of others do not count" in done.stderr


def test_an_average_takes_them_where_they_are_named(run, ckptool, tmp_path):
    named = [run / "step10.pt", run / "step40.pt"]
    done = ckptool("average", *named, "--only", "model", "-o", tmp_path / "mean.pt", "--json")
    assert [each["path"] for each in done.json["sources"]] == [*map(str, named)]
    assert done.json["derived"] == {}


def test_the_average_of_a_run_in_its_directory_is_left_out_of_the_next(run, ckptool):
    for name in ("mean.pt", "again.pt"):
        done = ckptool("average", run, "--only", "model", "-o", run / name, "--json")
        assert len(done.json["sources"]) == 2
    assert str(run / "mean.pt") in done.json["derived"]


def test_the_best_by_a_metric_of_the_log(tmp_path, ckptool):
    folder = hf_run(tmp_path / "run", (2, 4), (0.25, 0.5))
    assert chosen(ckptool, "verify", "--best", "eval_loss", folder) == ("checkpoint-2", "")
    assert chosen(ckptool, "verify", "--best", "eval_loss:max", folder) == ("checkpoint-4", "")


def test_a_checkpoint_that_cannot_be_read_at_all_is_passed_over(tmp_path, ckptool):
    state = runs.trained()
    runs.save(state, tmp_path, "step1.pt")
    torch.save(state | {"global_step": 30, "epoch": 6}, tmp_path / "step2.pt")
    raw = (tmp_path / "step2.pt").read_bytes()
    (tmp_path / "step2.pt").write_bytes(raw[: len(raw) // 2])
    name, told = chosen(ckptool, *LATEST, tmp_path)
    assert name == "step1.pt"
    assert told.startswith(f"skipped {tmp_path / 'step2.pt'}: ")
    best = ("verify", "--best", "epoch:max", "--require", "resume", tmp_path)
    assert chosen(ckptool, *best) == (name, told)

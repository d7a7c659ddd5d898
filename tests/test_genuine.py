"""Checkpoints that libraries wrote by their own code: what their loaders take passes, by default.

A row is added by a ``truth.json`` in ``fixtures/genuine/<library>/``; nothing is listed here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.paths import FIXTURES

GENUINE = FIXTURES / "genuine"
TRUTHS = sorted(GENUINE.glob("*/truth.json"))
LOADED = {
    f"{truth.parent.name}/{row['file']}": truth.parent / row["file"]
    for truth in TRUTHS
    for row in json.loads(truth.read_text())["files"]
    if row["loads"]
}
# What is no fault of ours and none of theirs: the loader runs code that the file holds, or the file
# is none that torch.load takes. It is called what it is.
OTHERS = {
    "torch_fx": "CK201",  # source code of forward
    "torch_export": "CK101",
    "torch_package": "CK101",
}
# Of each library the names that its files ask for, apart from torch's and numpy's.
CONSTRUCTED = {"hf_trainer", "peft", "lightning", "ultralytics"}


@pytest.mark.parametrize("name", LOADED)
def test_what_its_own_loader_takes_passes(name, ckptool):
    verdict = ckptool("verify", LOADED[name], "--json")
    errors = [f for f in verdict.json["findings"] if f["severity"] == "error"]
    other = OTHERS.get(name.partition("/")[0])
    if other:
        assert {f["rule"] for f in errors} == {other}
    else:
        assert (verdict.exit_code, errors) == (0, [])


@pytest.mark.parametrize("name", [n for n in LOADED if n.partition("/")[0] not in OTHERS])
def test_what_its_own_loader_takes_is_intact(name, ckptool):
    verdict = ckptool("verify", LOADED[name], "--require", "intact", "--json")
    unread = {"CK103", "CK107"} if verdict.json["format"] == "dcp" else set()
    assert {r for r, severity in rules(verdict).items() if severity == "error"} == unread


def test_enough_libraries_are_there():
    wanted = {
        "accelerate", "composer", "fastai", "hf_trainer", "ignite", "lightning", "mmengine", "peft",
        "sb3", "speechbrain", "tensordict", "timm", "torchrl", "ultralytics",
    }  # fmt: skip
    assert wanted <= {truth.parent.name for truth in TRUTHS}


@pytest.mark.parametrize("library", sorted(CONSTRUCTED))
def test_classes_that_are_constructed_are_told_and_are_not_safe(library, ckptool):
    """Enums and settings of the library: a warning, and a failure where safety is required."""
    paths = [path for name, path in LOADED.items() if name.startswith(f"{library}/")]
    files = [path for path in paths if path.is_file()]
    told = [p for p in files if rules(ckptool("verify", p, "--json")).get("CK210") == "warning"]
    assert told
    for path in told:
        verdict = ckptool("verify", path, "--require", "safe", "--json")
        assert (verdict.exit_code, rules(verdict)["CK210"]) == (1, "error")


def rules(verdict) -> dict[str, str]:
    return {f["rule"]: f["severity"] for f in verdict.json["findings"]}


# ------------------------------------------------------------------ the folder of a trainer's files

RUN = GENUINE / "hf_trainer" / "run"
LAST = RUN / "checkpoint-4"


def test_a_trainers_folder_is_one_checkpoint(ckptool):
    report = ckptool("inspect", LAST, "--json").json
    roles = {section["address"]: section["role"] for section in report["sections"]}
    assert roles == {
        "model.safetensors": "model",
        "optimizer.pt": "optimizer",
        "rng_state.pth": "rng",
        "scheduler.pt": "scheduler",
        "training_args.bin": "config",
        "trainer_state.json": "progress",
    }
    state = json.loads((LAST / "trainer_state.json").read_text())
    assert report["training"]["global_step"] == state["global_step"] == 4
    assert report["training"]["epoch"] == state["epoch"]
    assert set(report["training"]["rng"]) == {"torch", "numpy", "python"}


@pytest.mark.parametrize("folder", [LAST, GENUINE / "peft" / "run" / "checkpoint-4"], ids=str)
def test_a_trainers_folder_is_ready_to_resume(folder, ckptool):
    assert ckptool("verify", folder, "--require", "resume").exit_code == 0


@pytest.mark.parametrize(
    ("file", "rule"),
    [("optimizer.pt", "CK501"), ("scheduler.pt", "CK507"), ("rng_state.pth", "CK510"),
     ("rng_state.pth", "CK511"), ("trainer_state.json", "CK513"), ("model.safetensors", "CK519")],
)  # fmt: skip
def test_a_trainers_folder_without_a_file_is_not(file, rule, ckptool, tmp_path):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    for path in LAST.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if file == "trainer_state.json":  # the layout is told by it
        (folder / file).write_text("{}")
    else:
        (folder / file).unlink()
    verdict = ckptool("verify", folder, "--require", "resume", "--json")
    assert (verdict.exit_code, rules(verdict)[rule]) == (1, "error")


def test_a_run_lists_the_folders_in_it(ckptool):
    report = ckptool("inspect", RUN, "--json").json
    found = [(Path(each["path"]).name, each["global_step"]) for each in report["checkpoints"]]
    assert found == [("checkpoint-2", 2), ("checkpoint-4", 4)]
    assert ckptool("verify", "--latest-valid", RUN).strip() == str(LAST)
    assert ckptool("verify", RUN).exit_code == 0
    told = [f for verdict in ckptool("verify", RUN, "--json").json for f in verdict["findings"]]
    assert not [f for f in told if "checkpoint-4/" in f["message"]]  # they have verdicts


def test_the_newest_folder_that_is_damaged_is_passed_over(ckptool, tmp_path):
    for folder in RUN.iterdir():
        (tmp_path / folder.name).mkdir()
        for path in folder.iterdir():
            (tmp_path / folder.name / path.name).write_bytes(path.read_bytes())
    optimizer = tmp_path / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    chosen = ckptool("verify", "--latest-valid", tmp_path)
    assert chosen.strip() == str(tmp_path / "checkpoint-2")


def test_the_weights_of_a_trainers_folder_can_be_taken(ckptool, tmp_path):
    out = tmp_path / "out.safetensors"
    done = ckptool("extract-ema", f"{LAST}#@model", "-o", out)
    assert done.exit_code == 0
    assert load_file(out).keys() == load_file(LAST / "model.safetensors").keys()


def test_text_of_speechbrain_is_read_as_what_it_is(ckptool):
    folder = GENUINE / "speechbrain" / "save" / "CKPT+last"
    report = ckptool("inspect", folder, "--json").json
    assert report["training"]["epoch"] == int((folder / "counter.ckpt").read_text())
    assert report["training"]["global_step"] == 12
    alone = ckptool("verify", folder / "counter.ckpt", "--json")
    assert alone.exit_code == 1
    assert "SpeechBrain" in alone.json["findings"][0]["message"]


# ------------------------------------------------------------------------ files that are one object


@pytest.mark.parametrize(("file", "role"), [("optimizer.pt", "optimizer"),
                                            ("scheduler.pt", "scheduler")])  # fmt: skip
def test_a_bare_state_is_told_by_its_form(file, role, ckptool):
    (section,) = ckptool("inspect", LAST / file, "--json").json["sections"]
    assert (section["address"], section["role"]) == ("", role)


def test_a_whole_module_is_told_by_its_class(ckptool, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(model, tmp_path / "module.pt")
    torch.save({"model": model, "optimizer": optimizer}, tmp_path / "both.pt")
    (section,) = ckptool("inspect", tmp_path / "module.pt", "--json").json["sections"]
    assert (section["role"], section["object"]) == (
        "model", "torch.nn.modules.container.Sequential",
    )  # fmt: skip
    assert "a whole nn.Module (Sequential)" in ckptool("inspect", tmp_path / "module.pt")
    shown = ckptool("inspect", tmp_path / "both.pt").splitlines()
    # A key that is called as its role is not told its role again.
    cells = {line.split()[0]: " ".join(line.split()[1:5]) for line in shown if " a whole " in line}
    assert cells == {
        "model": "a whole nn.Module (Sequential)", "optimizer": "a whole optimizer (AdamW)",
    }  # fmt: skip

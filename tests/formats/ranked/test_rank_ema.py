"""EMA weights that each rank keeps of its own part: joined, told from the raw, never in slices."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.ranked.lone import RULE
from ckptool.formats.ranked.rank_files import RankFolder
from helpers.paths import FIXTURES

ROOT = FIXTURES / "sharded" / "rank_ema"


@pytest.mark.parametrize(
    ("folder", "selected"), [("files", "model_ema/generator_ema"), ("dcp", "ema_params")]
)
@pytest.mark.parametrize(("role", "truth"), [("ema", "ema"), ("model", "raw")])
def test_both_are_gathered(folder, selected, role, truth, ckptool, tmp_path):
    report = ckptool("inspect", ROOT / folder, "--json").json["ema"]
    assert (report["status"], report["selected"]) == ("found", selected)
    out = tmp_path / "out.safetensors"
    done = ckptool("extract-ema", f"{ROOT / folder}#@{role}", "-o", out, "--names", "ema")
    assert done.exit_code == 0
    found, wanted = load_file(out), load_file(ROOT / f"{truth}.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_slices_that_say_nothing_are_refused_by_name(ckptool, tmp_path):
    for role in ("@model", "ema"):
        out = tmp_path / "out.safetensors"
        refused = ckptool("extract-ema", f"{ROOT / 'local'}#{role}", "-o", out)
        assert (refused.exit_code, out.exists()) == (2, False)
    assert "embed.weight" in refused.stderr
    found = ckptool("verify", ROOT / "local", "--json").json["findings"]
    assert "CK114" in {finding["rule"] for finding in found}


def test_whole_copies_are_one(ckptool, tmp_path):
    out = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", f"{ROOT / 'copies'}#ema", "-o", out).exit_code == 0
    found, wanted = load_file(out), load_file(ROOT / "ema.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("folder", ["files", "local", "copies"])
def test_without_a_rank_it_is_refused(folder, tmp_path):
    copied = shutil.copytree(ROOT / folder, tmp_path / folder)
    next(copied.glob("*ema_rank_1.*")).unlink()
    with pytest.raises(CkptError, match="rank 1 is missing"):
        open_checkpoint(copied)


@pytest.mark.parametrize(
    ("name", "is_told"),
    [
        ("ema_rank_0.safetensors", True),
        ("model_world_size_4_rank_2.safetensors", True),
        ("model_rank-0-of-8.safetensors", True),
        ("model_world_size_1_rank_0.safetensors", False),
        ("lora_rank_8.safetensors", False),
        ("model_rank_0.safetensors", False),
    ],
)
def test_a_lone_file_that_may_be_a_part_is_told(name, is_told, tmp_path, ckptool):
    """By its name alone; what it says of itself is judged by other rules."""
    shutil.copy(ROOT / "local" / "ema_rank_0.safetensors", tmp_path / name)
    commands = (
        ("inspect", tmp_path / name),
        ("verify", tmp_path / name),
        ("extract-ema", f"{tmp_path / name}#@model", "-o", tmp_path / "out.safetensors"),
    )
    for command in commands:
        found = ckptool(*command, "--json")
        assert found.exit_code == 0
        assert (RULE in {each["rule"] for each in found.json["findings"]}) is is_told
    required = ckptool("verify", tmp_path / name, "--require", "intact")
    assert required.exit_code == int(is_told)
    like = ckptool("verify", tmp_path / name, "--require", "intact", "--like", tmp_path / name)
    assert like.exit_code == 0


def test_in_its_folder_no_file_is_told_of_alone(ckptool):
    found = ckptool("verify", ROOT / "copies", "--json").json["findings"]
    assert RULE not in {each["rule"] for each in found}


@pytest.mark.parametrize("names", [["ema_rank_0"], ["net_rank_0", "net_rank_1"]])
def test_other_plain_files_with_a_rank_are_a_run(names, tmp_path):
    for name in names:
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    assert not RankFolder(open_checkpoint).matches(tmp_path)

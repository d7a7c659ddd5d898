"""DeepSpeed's universal checkpoints, against the saves that they were made of."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.ranked.universal import ZERO
from ckptool.tensors.as_torch import as_torch
from helpers.paths import FIXTURES

ROOT = FIXTURES / "sharded" / "universal"
CASES = sorted(path.name for path in ROOT.iterdir())
STATES = [
    (case, str(path.relative_to(ROOT / case)))
    for case in CASES
    for path in sorted((ROOT / case / ZERO).glob("*/*.pt"))
    if path.parent.name in {"embed.weight", "head.bias"}
]


def test_there_are_all_stages():
    assert {case[:6] for case in CASES} == {"stage1", "stage2", "stage3"}


@pytest.mark.parametrize("case", CASES)
def test_weights_and_moments_equal_those_of_the_save(case, ckptool, tmp_path):
    zero = FIXTURES / "sharded" / "zero" / case
    wanted = load_file(zero.with_name(f"{case}.consolidated.safetensors"))
    with open_checkpoint(ROOT / case) as made, open_checkpoint(zero) as save:
        found = as_torch(made.tree["module"], made.reader)
        for name, state in save.tree["optimizer"]["state"].items():
            refs = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
            others = {key: made.tree["optimizer"]["state"][name][key] for key in refs}
            one, other = as_torch(refs, save.reader), as_torch(others, made.reader)
            assert all(torch.equal(one[key], other[key]) for key in refs), name
        settings = [group.keys() for group in made.tree["optimizer"]["param_groups"]]
        assert settings == [group.keys() for group in save.tree["optimizer"]["param_groups"]]
    assert all(torch.equal(found[name].float(), t.float()) for name, t in wanted.items())
    out = tmp_path / "model.safetensors"
    assert ckptool("extract-ema", f"{ROOT / case}#@model", "-o", out).exit_code == 0
    assert ckptool("verify", ROOT / case, "--bytes", "--values").exit_code == 0


@pytest.mark.parametrize(("case", "name"), STATES)
def test_without_a_state_it_is_refused_by_name(case, name, tmp_path):
    folder = shutil.copytree(ROOT / case, tmp_path / case)
    (folder / name).unlink()
    with pytest.raises(DamagedError, match=f"{name} is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("case", CASES)
def test_a_weight_of_another_shape_is_refused(case, tmp_path):
    folder = shutil.copytree(ROOT / case, tmp_path / case)
    torch.save({"param": torch.ones(3)}, folder / ZERO / "embed.weight" / "fp32.pt")
    with pytest.raises(DamagedError, match="not of the shape"):
        open_checkpoint(folder)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_with_latest_universal_is_its_only_save(case, tmp_path, ckptool):
    shutil.copytree(ROOT / case, tmp_path / "run" / "global_step2_universal")
    (tmp_path / "run" / "latest_universal").write_text("global_step2_universal")
    one, other = (
        ckptool("inspect", path, "--json").json for path in (tmp_path / "run", ROOT / case)
    )
    assert one["format"] == "deepspeed-universal"
    assert one["sections"] == other["sections"]
    shutil.copytree(ROOT / case, tmp_path / "run" / "global_step4_universal")
    entries = ckptool("inspect", tmp_path / "run", "--json").json["checkpoints"]
    assert [entry["format"] for entry in entries] == ["deepspeed-universal"] * 2

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


def test_a_weight_and_a_moment_that_have_each_others_names_are_refused(tmp_path):
    folder = shutil.copytree(ROOT / "stage1_bf16", tmp_path / "save")
    weight = next((folder / ZERO).rglob("fp32.pt"))
    moment = weight.with_name("exp_avg.pt")
    data = weight.read_bytes()
    weight.write_bytes(moment.read_bytes())
    moment.write_bytes(data)
    with pytest.raises(DamagedError, match=r"exp_avg.pt was saved as .*fp32.pt: files"):
        open_checkpoint(folder).close()


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


# ------------------------------------------------------------------- several model-parallel ranks

W = torch.arange(12.0).reshape(4, 3)
MP_0, MP_1 = (f"mp_rank_0{rank}_model_states.pt" for rank in (0, 1))


def a_save(folder, models, states):
    """Write a save: (module, shapes, step) by file, and each parameter's states by name."""
    for name, held in states.items():
        (folder / ZERO / name).mkdir(parents=True)
        for kind, value in held.items():
            torch.save(value, folder / ZERO / name / f"{kind}.pt")
    for file, (module, shapes, step) in models.items():
        sizes = {name: torch.Size(shape) for name, shape in shapes.items()}
        fields = {"module": module, "param_shapes": [sizes], "global_steps": step}
        torch.save(fields, folder / file)
    return folder


def states_of(value):
    return {"fp32": {"param": value}, "exp_avg": {"param": value * 2}}


def two_stages(folder, step=1):
    models = {MP_0: ({"w": W}, {"w": (4, 3)}, 1), MP_1: ({"v": W[:2]}, {"v": (2, 3)}, step)}
    return a_save(folder, models, {"w": states_of(W), "v": states_of(W[:2])})


def test_each_stage_of_a_pipeline_describes_its_parameters(tmp_path):
    with open_checkpoint(two_stages(tmp_path / "u")) as checkpoint:
        state = checkpoint.tree["optimizer"]["state"]
        assert {name: [*held] for name, held in state.items()} == {key: ["exp_avg"] for key in "wv"}
        found = as_torch({n: h["exp_avg"] for n, h in state.items()}, checkpoint.reader)
        assert torch.equal(found["v"], W[:2] * 2)
        assert checkpoint.tree["optimizer"]["param_groups"] == [{"params": ["w", "v"]}]
        assert [*checkpoint.tree["module"]] == ["v", "w"]


def test_model_files_of_two_steps_are_refused(tmp_path):
    with pytest.raises(DamagedError, match=r"global_steps is 1 in mp_rank_00.* 2 in mp_rank_01"):
        open_checkpoint(two_stages(tmp_path / "u", step=2))


def test_a_missing_model_rank_is_refused(tmp_path):
    folder = two_stages(tmp_path / "u")
    for file in (MP_0, MP_1):
        fields = torch.load(folder / file, weights_only=False)
        torch.save(fields | {"mp_world_size": 2}, folder / file)
    open_checkpoint(folder).close()
    (folder / MP_1).unlink()
    with pytest.raises(DamagedError, match=r"of 2 ranks, and the file of rank 1 is missing"):
        open_checkpoint(folder)


def test_a_weight_without_a_shape_is_refused(tmp_path):
    models = {MP_0: ({"w": W}, {"w": (4, 3)}, 1)}
    states = {"w": states_of(W), "v": {"fp32": W.flatten()}}
    with pytest.raises(DamagedError, match="zero/v is of a parameter that no model's file gives"):
        open_checkpoint(a_save(tmp_path / "u", models, states))


def test_states_without_a_shape_are_refused(tmp_path):
    models = {MP_0: ({"w": W, "v": W}, {"w": (4, 3)}, 1)}
    with pytest.raises(DamagedError, match="zero/v is of a parameter that no model's file gives"):
        open_checkpoint(a_save(tmp_path / "u", models, {"w": states_of(W), "v": states_of(W)}))


def test_two_shapes_of_a_parameter_are_refused(tmp_path):
    models = {MP_0: ({}, {"w": (4, 3)}, 1), MP_1: ({}, {"w": (3, 3)}, 1)}
    with pytest.raises(DamagedError, match=r"\[4, 3\] in group 0 of mp_rank_00.*but \[3, 3\]"):
        open_checkpoint(a_save(tmp_path / "u", models, {"w": states_of(W)}))


def test_slices_of_tensor_parallelism_are_refused_as_such(tmp_path, ckptool):
    models = {file: ({"w": W[:2]}, {"w": (2, 3)}, 1) for file in (MP_0, MP_1)}
    refused = ckptool("inspect", a_save(tmp_path / "u", models, {"w": states_of(W)}))
    assert refused.exit_code == 2
    assert "slices of tensor parallelism are not joined" in refused.stderr
    assert "two saves" not in refused.stderr


def test_parameters_in_directories_of_one_name_stay_two(tmp_path):
    shapes = {"w": (4, 3), "a/p": (4, 3), "b/p": (4, 3)}
    states = {"w": states_of(W), "a/p": states_of(W + 1), "b/p": states_of(W + 2)}
    models = {MP_0: (dict.fromkeys(shapes, W), shapes, 1)}
    with open_checkpoint(a_save(tmp_path / "u", models, states)) as checkpoint:
        found = as_torch(checkpoint.tree["module"], checkpoint.reader)
    assert {name: t[0, 0].item() for name, t in found.items()} == {"w": 0, "a/p": 1, "b/p": 2}

"""DeepSpeed: folders of ranks that its engine wrote, against its own consolidator."""

from __future__ import annotations

import re
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from ckptool.errors import CkptError, DamagedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.tensors.as_torch import as_torch
from helpers.paths import FIXTURES

ZERO = FIXTURES / "sharded" / "zero"
MERGED = ".consolidated.safetensors"
CASES = sorted(path.name.removesuffix(MERGED) for path in ZERO.glob(f"*{MERGED}"))
MANY = [case for case in CASES if len([*(ZERO / case).rglob("*optim_states.pt")]) > 1]
FILES = [(case, path.name) for case in CASES for path in sorted((ZERO / case).rglob("*_states.pt"))]


def save_of(case):
    (found,) = (path for path in (ZERO / case).iterdir() if path.is_dir())
    return found


def copied(case, tmp_path):
    return shutil.copytree(save_of(case), tmp_path / "save")


def test_there_are_all_stages_and_up_to_four_ranks():
    assert {case[:6] for case in CASES} == {"stage1", "stage2", "stage3"}
    ranks = {len([*(ZERO / case).rglob("*optim_states.pt")]) for case in CASES}
    assert ranks == {1, 2, 3, 4}


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_those_of_the_consolidator(case):
    """Which gives buffers and frozen parameters in float32."""
    wanted = load_file(ZERO / f"{case}{MERGED}")
    with open_checkpoint(ZERO / case) as checkpoint:
        module = as_torch(checkpoint.tree["module"], checkpoint.reader)
    assert module.keys() == wanted.keys()
    for name, tensor in wanted.items():
        same = module[name].float() if tensor.is_floating_point() else module[name]
        assert torch.equal(same, tensor.float() if tensor.is_floating_point() else tensor), name


@pytest.mark.parametrize("case", CASES)
def test_moments_have_the_shapes_of_their_parameters(case):
    with open_checkpoint(save_of(case)) as checkpoint:
        tree = checkpoint.tree
        moments = tree["optimizer"]["state"]
        trained = [name for group in tree["optimizer"]["param_groups"] for name in group["params"]]
        assert [*moments] == trained
        for name, state in moments.items():
            shape = tree["module"][name].shape
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == shape
            held = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
            values = as_torch(held, checkpoint.reader)
            # No part is in another's place: where one is 0, so is the other.
            assert (values["exp_avg_sq"] >= 0).all()
            assert (values["exp_avg"][values["exp_avg_sq"] == 0] == 0).all()


def test_a_folder_with_latest_is_its_only_save(ckptool):
    one, other = (
        ckptool("inspect", path, "--json").json for path in (ZERO / MANY[0], save_of(MANY[0]))
    )
    assert one["format"] == other["format"] == "deepspeed"
    assert one["sections"] == other["sections"]
    assert one["training"]["global_step"] == 2


def test_a_folder_of_two_saves_is_a_run(tmp_path, ckptool):
    for step in (2, 3):
        shutil.copytree(save_of("stage2_bf16"), tmp_path / f"global_step{step}")
    (tmp_path / "latest").write_text("global_step3")
    entries = ckptool("inspect", tmp_path, "--json").json["checkpoints"]
    assert [entry["format"] for entry in entries] == ["deepspeed", "deepspeed"]


@pytest.mark.parametrize("tag", ["../x", "", ".", "a\0b", "absent", "x" * 10_000])
def test_latest_never_leads_out_of_the_folder(tag, tmp_path):
    shutil.copytree(save_of("stage2_bf16"), tmp_path / "x")
    inner = tmp_path / "run"
    inner.mkdir()
    (inner / "latest").write_text(tag)
    with pytest.raises(CkptError):
        open_checkpoint(inner)


# -------------------------------------------------------------------------------- of another number


@pytest.mark.parametrize(("case", "name"), FILES)
def test_without_a_file_the_folder_is_refused(case, name, tmp_path, ckptool):
    folder = copied(case, tmp_path)
    (folder / name).unlink()
    with pytest.raises(CkptError) as caught:
        open_checkpoint(folder).close()
    assert re.search("missing|no file of the model|no checkpoint|directory", str(caught.value))
    assert ckptool("verify", folder).exit_code in {1, 2}


@pytest.mark.parametrize("case", MANY)
def test_a_rank_too_many_is_refused(case, tmp_path):
    folder = copied(case, tmp_path)
    last = max(folder.glob("*optim_states.pt"))
    more = re.sub(r"rank_(\d+)_mp", lambda m: f"rank_{int(m[1]) + 1}_mp", last.name)
    shutil.copy(last, folder / more)
    with pytest.raises(DamagedError, match="but there is also"):
        open_checkpoint(folder).close()


@pytest.mark.parametrize("case", MANY)
def test_a_copy_under_another_ranks_name_is_refused(case, tmp_path):
    folder = copied(case, tmp_path)
    first, second, *_ = sorted(folder.glob("*optim_states.pt"))
    shutil.copy(first, second)
    with pytest.raises(DamagedError, match="one is a copy of the other"):
        open_checkpoint(folder).close()


def save_anew(*files):
    """Write the same records as torch does where it writes to a stream, which has no name."""
    for file in files:
        with zipfile.ZipFile(file) as old:
            records = {info.filename: old.read(info) for info in old.infolist()}
        with zipfile.ZipFile(file, "w") as new:
            for name, data in records.items():
                new.writestr(f"archive/{name.partition('/')[2]}", data)


def exchange(one, other):
    """Give two files each other's name."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("case", [case for case in MANY if not case.startswith("stage3")])
def test_files_saved_anew_under_each_others_names_are_refused(case, tmp_path):
    """Stages 1 and 2 state the parameters in each file; in stage 3, every file has all of them."""
    folder = copied(case, tmp_path)
    first, second, *_ = sorted(folder.glob("*optim_states.pt"))
    exchange(first, second)
    save_anew(first, second)
    with pytest.raises(DamagedError, match="exchanged") as refused:
        open_checkpoint(folder).close()
    assert first.name in str(refused.value)
    assert "rank 1" in str(refused.value)


@pytest.mark.parametrize("kind", ["optim", "model"])
@pytest.mark.parametrize("case", MANY)
def test_files_that_have_each_others_names_are_refused(case, kind, tmp_path):
    """In all stages: torch calls the directory in each zip after the file."""
    folder = copied(case, tmp_path)
    files = sorted(folder.glob(f"*{kind}_states.pt"))
    if len(files) == 1:
        return  # the model of stages 1 and 2
    exchange(*files[:2])
    with pytest.raises(DamagedError, match="exchanged") as refused:
        open_checkpoint(folder).close()
    assert files[0].name in str(refused.value)
    assert files[1].name in str(refused.value)


def test_files_of_stage_3_that_were_saved_anew_or_renamed_are_taken(tmp_path):
    """Nothing in them says of which rank they are, or only that their name is another one."""
    folder = copied("stage3_bf16", tmp_path)
    first, second = sorted(folder.glob("*optim_states.pt"))
    save_anew(first)
    second.rename(folder / second.name.removeprefix("bf16_"))
    with open_checkpoint(folder) as found, open_checkpoint(save_of("stage3_bf16")) as wanted:
        ours, theirs = (as_torch(each.tree["module"], each.reader) for each in (found, wanted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("case", "name"), [(c, n) for c, n in FILES if c in {"stage2_bf16", "stage3_bf16"}]
)
def test_a_file_of_another_step_is_refused(case, name, tmp_path, ckptool):
    for one, other in ((case, f"{case}_later"), (f"{case}_later", case)):
        folder = copied(one, tmp_path / one)
        shutil.copy(save_of(other) / name, folder / name)
        assert ckptool("verify", folder, "--json").exit_code == 1


def copied_as(names, tmp_path):
    folder = copied("stage2_bf16", tmp_path)
    for name in names:
        shutil.copy(folder / "mp_rank_00_model_states.pt", folder / name)
    return folder


def test_slices_of_tensor_parallelism_are_not_joined(tmp_path):
    names = [f"mp_rank_0{rank}_model_states.pt" for rank in (1, 2)]
    with pytest.raises(UnsupportedError, match=f"tensor parallelism: {', '.join(names)} hold"):
        open_checkpoint(copied_as(names, tmp_path)).close()


def of_two_model_ranks(file):
    """Let a model's file state that it is of the first of two ranks of tensor parallelism."""
    fields = torch.load(file, weights_only=False)
    torch.save(fields | {"mp_world_size": 2}, file)


@pytest.mark.parametrize("case", ["stage2_bf16", "stage3_bf16_later"])
def test_a_slice_whose_other_ranks_are_missing_is_not_the_model(case, tmp_path, ckptool):
    folder = copied(case, tmp_path)
    files = [*folder.glob("*_model_states.pt")]
    for file in files:
        of_two_model_ranks(file)
    with pytest.raises(UnsupportedError, match="holds a slice of the model, of 2 ranks"):
        open_checkpoint(folder)
    lone = ckptool("verify", files[0], "--json").json["findings"]
    assert "CK126" in {each["rule"] for each in lone}


@pytest.mark.parametrize(
    "names",
    [
        ["layer_0_expert_0_mp_rank_00_model_states.pt"],
        ["layer_00-model_states.pt", "layer_01-model_states.pt"],
        [f"layer_{n:02d}-model_00-model_states.pt" for n in range(2)],
    ],
)
def test_stages_and_experts_are_not_joined(names, tmp_path):
    with pytest.raises(UnsupportedError, match=f"{', '.join(names)} (is a|are) part") as caught:
        open_checkpoint(copied_as(names, tmp_path)).close()
    assert "ds_to_universal" in caught.value.hint

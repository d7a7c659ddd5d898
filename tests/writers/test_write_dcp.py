"""Directories of torch.distributed.checkpoint written without torch; torch is the judge."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ckptool.writers import dcp_folder
from helpers import strategies
from helpers.making import save, weights
from helpers.paths import contents
from helpers.samples import NEW_DTYPES, OLD_DTYPES, filled
from helpers.tensors import assert_same_tensors, load
from helpers.thinned import examples

pytestmark = pytest.mark.filterwarnings("ignore")


def loaded(folder, like: dict) -> dict:
    """What torch's own loader fills into tensors of the same shapes."""
    filled_in = {
        name: torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        for name, tensor in like.items()
    }
    dcp.load(filled_in, checkpoint_id=folder, no_dist=True)
    return filled_in


@pytest.fixture
def converted(ckptool, tmp_path):
    def run(state_dict, *more) -> object:
        torch.save(state_dict, tmp_path / "in.pt")
        done = ckptool("convert", tmp_path / "in.pt", "-o", tmp_path / "out.dcp", *more)
        assert done.exit_code == 0, done.stderr
        return tmp_path / "out.dcp"

    return run


@pytest.mark.parametrize("dtype", OLD_DTYPES + NEW_DTYPES, ids=str)
def test_every_type(dtype, converted):
    state_dict = {
        "matrix": filled(dtype, 6).view(2, 3),
        "strided": filled(dtype, 12).view(3, 4).t(),
        "scalar": filled(dtype, 1).view(()),
        "empty": filled(dtype, 0).view(0, 2),
    }
    folder = converted(state_dict)
    whole = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    dcp_to_torch_save(folder, folder.with_name("back.pt"))  # makes the tensors by the plan
    assert_same_tensors(load(folder.with_name("back.pt")), whole)


def test_torch_loads_it_into_a_model(converted):
    state_dict = weights()
    assert_same_tensors(loaded(converted(state_dict), state_dict), state_dict)


def test_a_key_around_the_state_dict(converted):
    state_dict = weights()
    folder = converted(state_dict, "--wrap", "model")
    into = {"model": {name: torch.zeros_like(tensor) for name, tensor in state_dict.items()}}
    dcp.load(into, checkpoint_id=folder, no_dist=True)
    assert_same_tensors(into["model"], state_dict)


def test_a_cast(converted):
    state_dict = weights()
    folder = converted(state_dict, "--dtype", "bfloat16")
    wanted = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in state_dict.items()
    }
    assert_same_tensors(loaded(folder, wanted), wanted)


def test_tied_weights_stand_under_each_name(converted, ckptool, tmp_path):
    one = torch.arange(12.0)
    state_dict = {"a": one, "b": one, "part": one[4:8]}
    folder = converted(state_dict)
    assert_same_tensors(loaded(folder, state_dict), {n: t.clone() for n, t in state_dict.items()})
    again = ckptool("convert", tmp_path / "in.pt", "-o", folder, "--force", "--json").json
    assert (again["output"], again["format"], again["ties"]) == (str(folder), "dcp", "each")


def test_the_plan_is_one_of_torch(converted):
    """Its own classes read it, whole: nothing is missing and no class is another."""
    folder = converted({"a": torch.zeros(2, 3)})
    plan = pickle.loads((folder / ".metadata").read_bytes())
    dcp.save({"a": torch.zeros(2, 3)}, checkpoint_id=folder.with_name("torch"), no_dist=True)
    wanted = pickle.loads((folder.with_name("torch") / ".metadata").read_bytes())
    assert plan.state_dict_metadata == wanted.state_dict_metadata
    assert plan.planner_data == wanted.planner_data
    assert plan.storage_data.keys() == wanted.storage_data.keys()
    assert plan.version == wanted.version


def test_the_note_is_in_the_plan(converted, ckptool):
    folder = converted(weights())
    assert ckptool("inspect", folder, "--json").json["provenance"]["command"] == "convert"


def test_only_files_of_a_save_are_left_over(tmp_path):
    for name in ("__0_0.distcp", "__0_1.distcp", "__1_0.distcp", "mine.distcp", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in dcp_folder.left_over(tmp_path)] == ["__0_1.distcp", "__1_0.distcp"]


def test_an_earlier_save_is_replaced_whole(ckptool, tmp_path):
    folder, new = tmp_path / "run.dcp", weights()
    folder.mkdir()
    for rank in (0, 1):
        (folder / f"__{rank}_0.distcp").write_bytes(b"earlier")
    (folder / ".metadata").write_bytes(b"earlier")
    (folder / "notes.txt").write_bytes(b"mine")
    torch.save(new, tmp_path / "new.pt")
    before = contents(tmp_path)
    refusal = ckptool("convert", tmp_path / "new.pt", "-o", folder)
    assert (refusal.exit_code, contents(tmp_path)) == (2, before)
    done = ckptool("convert", tmp_path / "new.pt", "-o", folder, "--force", "--json")
    assert done.json["removed"] == ["__1_0.distcp"]
    assert {p.name for p in folder.iterdir()} == {".metadata", "__0_0.distcp", "notes.txt"}
    assert_same_tensors(loaded(folder, new), new)


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_empty_directory_is_taken(slash, ckptool, tmp_path):
    (tmp_path / "out.dcp").mkdir()
    torch.save(weights(), tmp_path / "in.pt")
    done = ckptool("convert", tmp_path / "in.pt", "-o", f"{tmp_path / 'out.dcp'}{slash}", "--json")
    assert done.json["output"] == str(tmp_path / "out.dcp")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("in.pt/out.dcp", "the directory does not exist"),
        ("nowhere/out.dcp", "the directory does not exist"),
        ("file.dcp", "not a directory"),
    ],
)
def test_a_place_where_no_directory_can_be(ckptool, tmp_path, output, message):
    torch.save(weights(), tmp_path / "in.pt")
    (tmp_path / "file.dcp").write_bytes(b"mine")
    before = contents(tmp_path)
    for more in ((), ("--force",), ("--dry-run",)):
        done = ckptool("convert", tmp_path / "in.pt", "-o", tmp_path / output, *more, "--json")
        assert message in done.json["error"]["message"]
    assert contents(tmp_path) == before


def test_a_refusal_leaves_no_directory(ckptool, tmp_path):
    torch.save({"a": torch.full((3,), 1e30)}, tmp_path / "in.pt")
    done = ckptool("convert", tmp_path / "in.pt", "-o", tmp_path / "out.dcp", "--dtype", "float16")
    assert done.exit_code == 2
    assert not (tmp_path / "out.dcp").exists()
    done = ckptool("convert", tmp_path / "in.pt", "-o", tmp_path / "out.dcp", "--dry-run")
    assert done.exit_code == 0
    assert not (tmp_path / "out.dcp").exists()


def test_no_other_command_writes_a_file_of_this_name(ckptool, tmp_path):
    """promote-ema and convert --drop write the container that they read."""
    path = save(tmp_path / "a.ckpt", weights())
    for command in (("promote-ema",), ("convert", "--drop", "ema")):
        done = ckptool(command[0], path, *command[1:], "-o", tmp_path / "out.dcp")
        assert done.exit_code == 2, done.stdout
        assert not (tmp_path / "out.dcp").exists()


def test_the_input_is_never_replaced(converted, ckptool):
    folder = converted(weights())
    before = contents(folder)
    done = ckptool("convert", folder, "-o", folder, "--force")
    assert (done.exit_code, contents(folder)) == (2, before)


@given(strategies.tensor_pools(new=True))
@examples(30)
def test_any_tensors_read_back(ckptool, tmp_path_factory, pool):
    folder = tmp_path_factory.mktemp("dcp")
    state_dict = {f"t{at}": tensor for at, tensor in enumerate(pool)}
    torch.save(state_dict, folder / "in.pt")
    done = ckptool("convert", folder / "in.pt", "-o", folder / "out.dcp")
    assert done.exit_code == 0, done.stderr
    again = ckptool("diff", folder / "in.pt", folder / "out.dcp", "--json")
    assert again.exit_code == 0, again.stdout

"""Flattened parameters: fairscale's are joined by their metadata, torch's are refused by name."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.formats.ranked.flattened import METADATA, PARAMS, is_flattened
from ckptool.tensors.as_torch import as_torch
from helpers.paths import FIXTURES

ROOT = FIXTURES / "sharded" / "flattened"
WHOLE = ".whole.safetensors"
CASES = sorted(path.name.removesuffix(WHOLE) for path in ROOT.glob(f"*{WHOLE}"))
JOINED = [case for case in CASES if case.startswith("fairscale")]
FILES = [(case, path.name) for case in JOINED for path in sorted((ROOT / case).iterdir())]


def changed(case, name, tmp_path, change):
    """A copy of a save in which one file is changed."""
    folder = shutil.copytree(ROOT / case, tmp_path / case)
    state = torch.load(folder / name, weights_only=False)
    change(state)
    torch.save(state, folder / name)
    return folder


@pytest.mark.parametrize("case", JOINED)
def test_weights_equal_what_fairscale_consolidates(case, ckptool):
    wanted = load_file(ROOT / f"{case}{WHOLE}")
    with open_checkpoint(ROOT / case) as checkpoint:
        assert not is_flattened(checkpoint.tree)
        found = as_torch(checkpoint.tree["model"], checkpoint.reader)
        assert checkpoint.tree["args"]["use_sharded_state"] is True
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert ckptool("verify", ROOT / case, "--bytes", "--values").exit_code == 0


@pytest.mark.parametrize("case", [case for case in CASES if case not in JOINED])
def test_what_says_nothing_is_refused_by_name(case, ckptool, tmp_path):
    out = tmp_path / "out.safetensors"
    refused = ckptool("extract-ema", f"{ROOT / case}#@model", "-o", out)
    assert (refused.exit_code, out.exists()) == (2, False)
    assert "flattened FSDP parameters" in refused.stderr
    assert "FULL_STATE_DICT" in refused.stderr
    found = ckptool("verify", ROOT / case, "--json").json["findings"]
    assert "CK114" in {finding["rule"] for finding in found}


@pytest.mark.parametrize(("case", "name"), FILES)
def test_a_lone_file_is_not_the_whole(case, name, ckptool, tmp_path):
    out = tmp_path / "out.safetensors"
    refused = ckptool("extract-ema", f"{ROOT / case / name}#@model", "-o", out)
    assert (refused.exit_code, out.exists()) == (2, False)
    assert "name the directory" in refused.stderr


@pytest.mark.parametrize(("case", "name"), FILES)
def test_without_a_rank_it_is_refused(case, name, tmp_path):
    folder = shutil.copytree(ROOT / case, tmp_path / case)
    (folder / name).unlink()
    with pytest.raises(DamagedError, match=r"missing|its parts have"):
        open_checkpoint(folder).close()


def test_files_that_have_each_others_names_are_refused(tmp_path):
    """Where one ends with padding; ranks whose parts are all full tell nothing."""
    folder = shutil.copytree(ROOT / "fairscale_two", tmp_path / "save")
    one, other = sorted(folder.iterdir())
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)
    with pytest.raises(DamagedError, match="exchanged"):
        open_checkpoint(folder).close()


@pytest.mark.parametrize("case", JOINED)
def test_a_copy_or_a_rank_too_many_is_refused(case, tmp_path):
    first, second, *_ = sorted(path.name for path in (ROOT / case).iterdir())
    more = f"checkpoint-shard{len([*(ROOT / case).iterdir()])}.pt"
    for name in (second, more):
        folder = shutil.copytree(ROOT / case, tmp_path / f"{case}-{name}")
        shutil.copy(folder / first, folder / name)
        with pytest.raises(DamagedError, match=r"holds the same values|its parts have"):
            open_checkpoint(folder).close()


def other_shape(state):
    params = state[METADATA][PARAMS][0]["params"]["flat_param_0"]
    params["shapes"][1] = torch.Size([5, 7])


def more_padding(state):
    state[METADATA][PARAMS][0]["params"]["flat_param_0"]["padding"] += 1


def no_end_of_padding(state):
    state[METADATA][PARAMS][0]["params"]["flat_param_0"]["padding"] = 10**9


def negative(state):
    state[METADATA][PARAMS][0]["params"]["flat_param_0"]["shapes"][0] = (-1,)


def no_parameter(state):
    del state["model"]["flat_param_0"]


def no_metadata(state):
    del state[METADATA]


def shared_with_nothing(state):
    state[METADATA][PARAMS][-1]["shared_param_info"] = [("absent", "embed.weight")]


@pytest.mark.parametrize(
    "change",
    [
        other_shape,
        more_padding,
        no_end_of_padding,
        negative,
        no_parameter,
        no_metadata,
        shared_with_nothing,
    ],
)
def test_metadata_that_does_not_fit_is_refused(change, tmp_path):
    with pytest.raises(DamagedError):
        open_checkpoint(changed("fairscale_two", "checkpoint-shard1.pt", tmp_path, change)).close()


def test_flat_parameters_of_torch_xla_are_no_weights(tmp_path, ckptool):
    """Named as its FSDP names them."""
    name = "layer._fsdp_shard_FSDP_SHARD_SEPARATOR_weight"
    for rank in range(2):
        torch.save({"model": {name: torch.randn(4)}}, tmp_path / f"model_rank-{rank}-of-2.pth")
    lone = tmp_path / "model_rank-0-of-2.pth"
    assert ckptool("extract-ema", f"{lone}#@model", "-o", tmp_path / "o.pt").exit_code == 2


def with_experts(folder, *experts):
    """Write a save of a cut module, and one that each rank holds whole."""

    def described(path, name, shape, *, is_whole):
        flat = {"names": [name], "shapes": [torch.Size(shape)], "padding": 0}
        params = {"flat_param_0": flat}
        return {"fsdp_path": path, "params": params, "no_broadcast_optim_state": is_whole}

    metadata = [described("", "w", (2, 4), is_whole=False)]
    metadata.append(described("expert", "v", (3,), is_whole=True))
    for rank, expert in enumerate(experts):
        model = {"flat_param_0": torch.arange(4.0) + 4 * rank, "expert.flat_param_0": expert}
        saved = {"model": model, METADATA: {PARAMS: metadata}}
        torch.save(saved, folder / f"checkpoint-shard{rank}.pt")
    return folder


def test_a_module_that_all_ranks_hold_whole_is_read_once(tmp_path):
    folder = with_experts(tmp_path, torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 3]))
    with open_checkpoint(folder) as checkpoint:
        found = as_torch(checkpoint.tree["model"], checkpoint.reader)
    assert {name: t.flatten().tolist() for name, t in found.items()} == {
        "w": [*range(8)],
        "expert.v": [1, 2, 3],
    }


@pytest.mark.parametrize("second", [[1.0, 2, 4], [1.0, 2], [1.0, 2, 3, 4]])
def test_a_whole_module_of_each_ranks_own_is_refused(second, tmp_path):
    folder = with_experts(tmp_path, torch.tensor([1.0, 2, 3]), torch.tensor(second))
    with pytest.raises(UnsupportedError, match="experts, of which each rank has its own"):
        open_checkpoint(folder)


def test_whole_modules_that_differ_at_the_end_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptool.formats.same_values.COMPARED", 4)
    folder = with_experts(tmp_path, torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 4]))
    with pytest.raises(UnsupportedError, match="with other values"):
        open_checkpoint(folder)

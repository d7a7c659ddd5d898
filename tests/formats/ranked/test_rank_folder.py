"""Folders with a file for each rank, as processes wrote them, against what torch gathers."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from ckptool.errors import CkptError, DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.ranked import rank_files
from ckptool.formats.ranked.distributed import is_distributed
from ckptool.sources.local import LocalFile
from ckptool.tensors.as_torch import as_torch
from ckptool.tree.nodes import CompositeTensor, TensorRef
from helpers.paths import FIXTURES

RANKS = FIXTURES / "sharded" / "ranks"
WHOLE = ".whole.safetensors"
CASES = sorted(path.name.removesuffix(WHOLE) for path in RANKS.glob(f"*{WHOLE}"))
FILES = [(case, path.name) for case in CASES for path in sorted((RANKS / case).iterdir())]
TRAINED = [case for case in CASES if case.startswith("fsdp")]


def weights(tree):
    return tree.get("model", tree)


def leaves(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from leaves(value)
    else:
        yield node


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_what_torch_gathers(case):
    wanted = load_file(RANKS / f"{case}{WHOLE}")
    with open_checkpoint(RANKS / case) as checkpoint:
        found = as_torch(weights(checkpoint.tree), checkpoint.reader)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("case", TRAINED)
def test_moments_are_joined_too(case):
    with open_checkpoint(RANKS / case) as checkpoint:
        moments = list(leaves(checkpoint.tree["optim"]["state"]))
        shapes = {ref.shape for ref in checkpoint.tree["model"].values()}
    assert moments
    assert not any(is_distributed(leaf) for leaf in moments)
    assert {ref.shape for ref in moments if isinstance(ref, TensorRef)} <= shapes | {()}


def test_what_differs_by_rank_is_kept_by_file():
    with open_checkpoint(RANKS / "fsdp2_three") as checkpoint:
        own = [key for key in checkpoint.tree if key.startswith("extra_state_")]
        assert own == [f"extra_state_world_size_3_rank_{rank}.pt" for rank in (1, 2)]
        for key in own:
            assert [*checkpoint.tree[key]] == ["rng"]  # the scheduler is the same


def test_the_consolidated_file_is_equal(tmp_path, ckptool):
    out = tmp_path / "model.safetensors"
    assert ckptool("extract-ema", f"{RANKS / 'fsdp2_bf16'}#@model", "-o", out).exit_code == 0
    wanted = load_file(RANKS / f"fsdp2_bf16{WHOLE}")
    found = load_file(out)
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    folder, file = (
        {row["address"]: row["sha256"] for row in report["entries"]}
        for report in (
            ckptool("inspect", at, "--digests", "--json").json
            for at in (f"{RANKS / 'fsdp2_bf16'}#model", out)
        )
    )
    assert file.items() <= folder.items()
    assert folder.keys() - file.keys() <= {"decode.weight"}  # tied, noted in the metadata


@pytest.mark.parametrize("case", CASES)
def test_verify_passes(case, ckptool):
    assert ckptool("verify", RANKS / case, "--bytes", "--values").exit_code == 0


@pytest.mark.parametrize("case", ["fsdp2_three", "columns", "mesh", "fsdp1_sharded"])
def test_a_changed_byte_in_any_rank_is_refused(case, tmp_path, ckptool):
    """The checksum of each rank's storage is compared while the parts are joined."""
    for path in sorted((RANKS / case).glob("model*")):
        folder = shutil.copytree(RANKS / case, tmp_path / path.stem / case)
        with open_checkpoint(RANKS / case) as checkpoint:
            chunks = (chunk for ref in weights(checkpoint.tree).values() for chunk in ref.chunks)
            span = next(c.span for c in chunks if c.span.source.path == path and c.span.nbytes)
        data = bytearray(path.read_bytes())
        data[span.offset] ^= 1
        (folder / path.name).write_bytes(data)
        out = tmp_path / path.stem / "out.safetensors"
        refused = ckptool("extract-ema", f"{folder}#@model", "-o", out)
        assert (refused.exit_code, out.exists()) == (2, False)
        assert "do not fit its checksum" in refused.stderr


def test_a_value_that_is_not_finite_is_told_whichever_rank_has_it(tmp_path, ckptool):
    for rank in range(3):
        folder = shutil.copytree(RANKS / "columns", tmp_path / f"of{rank}")
        path = folder / f"model_world_size_3_rank_{rank}.pt"
        state = torch.load(path, weights_only=False)
        state["t0"]._local_tensor[0, 0] = float("nan")
        torch.save(state, path)
        found = ckptool("verify", folder, "--values", "--json").json["findings"]
        assert [f["address"] for f in found if f["rule"] == "CK301"] == ["t0"]


@pytest.mark.parametrize("case", ["ranks/fsdp1_sharded", "dcp_safetensors/rows"])
def test_each_byte_is_read_once(case, tmp_path, ckptool, monkeypatch):
    """Parts that follow each other are neither read again for their tests nor read back.

    A part that FSDP2 padded is read again, with its padding, for the checksum.
    """
    taken = Counter()

    def counted(self, buffer, offset, plain=LocalFile.fetch_into):
        taken[self.path.name, offset] += 1
        return plain(self, buffer, offset)

    monkeypatch.setattr(LocalFile, "fetch_into", counted)
    out = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", f"{RANKS.parent / case}#@model", "-o", out).exit_code == 0
    assert taken
    assert max(taken.values()) == 1
    assert not [name for name, _ in taken if name == out.name]


# ----------------------------------------------------------------------------- not the ranks of one


def copied(case, tmp_path):
    return shutil.copytree(RANKS / case, tmp_path / case)


@pytest.mark.parametrize(("case", "name"), FILES)
def test_without_a_rank_the_folder_is_refused(case, name, tmp_path):
    folder = copied(case, tmp_path)
    (folder / name).unlink()
    with pytest.raises(DamagedError, match="missing"):
        open_checkpoint(folder).close()


@pytest.mark.parametrize("case", CASES)
def test_a_rank_too_many_is_refused(case, tmp_path):
    folder = copied(case, tmp_path)
    last = max(folder.glob("model*"))
    shutil.copy(last, folder / re.sub(r"\d+\.pt", lambda m: f"{int(m[0][:-3]) + 1}.pt", last.name))
    with pytest.raises(DamagedError):
        open_checkpoint(folder).close()


@pytest.mark.parametrize("case", [case for case in CASES if case != "replicated"])
def test_a_copy_under_another_ranks_name_is_refused(case, tmp_path):
    folder = copied(case, tmp_path)
    first, second, *_ = sorted(folder.glob("model*"))
    shutil.copy(first, second)
    with pytest.raises(DamagedError):
        open_checkpoint(folder).close()


def test_ranks_of_two_world_sizes_are_refused(tmp_path):
    folder = copied("fsdp2_two", tmp_path)
    for path in (RANKS / "fsdp2_three").glob("model*"):
        shutil.copy(path, folder)
    with pytest.raises(DamagedError, match="the number of ranks is 2 in"):
        open_checkpoint(folder).close()


def test_a_world_that_the_tensors_deny_is_refused(tmp_path):
    for path in (RANKS / "fsdp2_three").glob("model*"):
        shutil.copy(path, tmp_path / path.name.replace("size_3", "size_4"))
    with pytest.raises(CkptError):
        open_checkpoint(tmp_path).close()


def fewer(match):
    """The last rank is left out, and the others say that it never was."""
    is_last = int(match[2]) == int(match[1]) - 1
    return None if is_last else f"size_{int(match[1]) - 1}_rank_{match[2]}"


CLAIMS = {
    "one less": fewer,
    "one more": lambda m: f"size_{int(m[1]) + 1}_rank_{m[2]}",
    "twice": lambda m: f"size_{2 * int(m[1])}_rank_{m[2]}",
    "none": lambda m: f"size_0_rank_{m[2]}",
    "one": lambda m: f"size_1_rank_{m[2]}",
    "a billion": lambda m: f"size_999999999_rank_{m[2]}",
    "shifted": lambda m: f"size_{m[1]}_rank_{int(m[2]) + 1}",
    "turned round": lambda m: f"size_{m[1]}_rank_{int(m[1]) - 1 - int(m[2])}",
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("case", [case for case in CASES if case != "replicated"])
def test_names_that_claim_another_number_of_ranks_are_refused(case, claim, tmp_path):
    for path in (RANKS / case).iterdir():
        match = re.search(r"size_(\d+)_rank_(\d+)", path.name)
        name = CLAIMS[claim](match)
        if name:
            shutil.copy(path, tmp_path / path.name.replace(match[0], name))
    with pytest.raises(CkptError):
        open_checkpoint(tmp_path)


def test_a_lone_part_is_not_the_whole(tmp_path):
    shutil.copy(RANKS / "fsdp2_two" / "model_world_size_2_rank_0.pt", tmp_path)
    with pytest.raises(DamagedError, match="rank 1"):
        open_checkpoint(tmp_path).close()
    with open_checkpoint(tmp_path / "model_world_size_2_rank_0.pt") as alone:
        assert isinstance(alone.tree["embed.weight"], CompositeTensor)


def test_a_file_of_another_step_is_refused(tmp_path):
    """A replicated copy, and a counter that every rank has."""
    folder = copied("hybrid", tmp_path)
    state = torch.load(folder / "model_world_size_4_rank_3.pt", weights_only=False)
    for tensor in state.values():
        tensor._local_tensor.add_(1)
    torch.save(state, folder / "model_world_size_4_rank_3.pt")
    with pytest.raises(DamagedError, match="from two saves"):
        open_checkpoint(folder).close()
    folder = copied("fsdp2_two", tmp_path)
    state = torch.load(folder / "model_world_size_2_rank_1.pt", weights_only=False)
    state["norm.num_batches_tracked"] += 1
    torch.save(state, folder / "model_world_size_2_rank_1.pt")
    with pytest.raises(DamagedError, match="num_batches_tracked is 2 in"):
        open_checkpoint(folder).close()


# ---------------------------------------------------------------------------- what is not one save


def test_slices_that_nothing_describes_are_not_the_whole(tmp_path, ckptool):
    for rank in range(2):
        state = {"model": {"w": torch.full((2, 3), float(rank)), "b": torch.ones(3)}}
        torch.save(state, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    refused = ckptool("extract-ema", f"{tmp_path}#@model", "-o", tmp_path / "out.safetensors")
    assert refused.exit_code == 2
    assert "differ from rank to rank" in refused.stderr


@pytest.mark.parametrize(
    "names",
    [
        ["lora_rank_4.pt", "lora_rank_8.pt"],
        ["best_rank1.ckpt", "best_rank2.ckpt"],
        ["frank2.pt", "pagerank_1.pt"],
        ["epoch1_rank0.pt", "epoch1_rank1.pt", "epoch2_rank0.pt", "epoch2_rank1.pt"],
        ["rng_state_rank_0.pth", "rng_state_rank_1.pth"],
    ],
)
def test_other_files_with_rank_in_their_names_are_a_run(names, tmp_path, ckptool):
    for name in names:
        torch.save({"model": {"w": torch.ones(2)}}, tmp_path / name)
    report = ckptool("inspect", tmp_path, "--json").json
    assert [entry["format"] for entry in report["checkpoints"]] == ["torch-zip"] * len(names)


def test_containers_that_hold_themselves_again_and_again_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_files, "MAX_VISITS", 1 << 14)
    node = {}
    node.update({str(n): node for n in range(8)})
    for rank in range(2):
        path = tmp_path / f"model_world_size_2_rank_{rank}.pt"
        torch.save(node, path)
    with pytest.raises(DamagedError, match="values"):
        open_checkpoint(tmp_path).close()

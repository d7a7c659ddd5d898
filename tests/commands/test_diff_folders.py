"""Comparisons of directories of ranks: with their consolidated file, and of other world sizes."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.paths import FIXTURES

SHARDED = FIXTURES / "sharded"
CONSOLIDATED = [
    (path.with_name(path.name.partition(".")[0]), path)
    for room in ("zero", "ranks", "dcp_safetensors", "engines")
    for path in sorted((SHARDED / room).glob("*.safetensors"))
]
# zero_to_fp32 gives buffers and frozen parameters in float32, ckptool in their own dtype.
CAST = ("stage1_bf16", "stage2_bf16", "stage2_fp16", "stage3_bf16", "stage3_many")


def opened(folder):
    inside = [path for path in folder.iterdir() if path.is_dir()]
    return inside[0] if folder.parent.name == "engines" else folder


@pytest.mark.parametrize(("folder", "whole"), CONSOLIDATED, ids=lambda path: path.name)
def test_a_folder_equals_its_consolidated_file(folder, whole, ckptool, tmp_path):
    cast = ["--any-dtype"] if folder.name in CAST else []
    tensors = load_file(whole)
    has_more = len(ckptool("inspect", opened(folder), "--json").json["sections"]) > 1
    for sides in ((opened(folder), whole), (whole, opened(folder))):
        report = ckptool("diff", *sides, "--json", *cast)
        summary = report.json["summary"]
        assert summary["tensors"]["compared"] == len(tensors)
        assert (report.exit_code, report.json["equal"]) == (0, True)
        said = [s for s in summary["not_compared"] if "holds weights alone" in s]
        assert len(said) == has_more
    name = max(tensors, key=lambda key: tensors[key].numel())
    save_file({**tensors, name: tensors[name] + 1}, tmp_path / "changed.safetensors")
    assert ckptool("diff", opened(folder), tmp_path / "changed.safetensors").exit_code == 1


@pytest.mark.parametrize(("folder", "whole"), CONSOLIDATED, ids=lambda path: path.name)
def test_digests_are_those_of_the_consolidated_file(folder, whole, ckptool):
    if folder.name in CAST:
        return
    one, other = (
        {row["address"].rpartition("/")[2]: row["sha256"] for row in found.json["entries"]}
        for found in (
            ckptool("inspect", "--digests", "--json", path)
            for path in (f"{opened(folder)}#@model", whole)
        )
    )
    assert one == other


def test_a_document_of_digests_is_one_of_weights(ckptool, tmp_path):
    folder, whole = CONSOLIDATED[-1]
    document = tmp_path / "weights.json"
    document.write_text(ckptool("inspect", "--digests", "--json", whole).stdout)
    assert ckptool("diff", opened(folder), document).exit_code == 0


def of_world(world, folder):
    """DTensors of the same weights, and a random state of each rank's own."""
    case = {3: "columns", 4: "mesh"}[world]
    shutil.copytree(SHARDED / "ranks" / case, folder)
    for rank in range(world):
        state = {"rng": torch.arange(10, dtype=torch.uint8) + 7 * rank, "step": torch.tensor(3)}
        torch.save(state, folder / f"extra_state_world_size_{world}_rank_{rank}.pt")
    return folder


def test_other_numbers_of_ranks_are_no_difference(ckptool, tmp_path):
    one, other = of_world(3, tmp_path / "three"), of_world(4, tmp_path / "four")
    report = ckptool("diff", one, other, "--json").json
    assert report["equal"]
    assert len([s for s in report["summary"]["not_compared"] if "single ranks keep" in s]) == 2


def test_ranks_of_one_number_are_compared(ckptool, tmp_path):
    one, other = of_world(3, tmp_path / "one"), of_world(3, tmp_path / "other")
    assert ckptool("diff", one, other).exit_code == 0
    last = other / "extra_state_world_size_3_rank_2.pt"
    torch.save({"rng": torch.zeros(10, dtype=torch.uint8), "step": torch.tensor(3)}, last)
    assert ckptool("diff", one, other).exit_code == 1


def test_a_file_with_all_in_it_is_compared_with_all_of_the_folder(ckptool, tmp_path):
    """The weights alone are taken only where the other side has nothing else."""
    folder = SHARDED / "engines" / "lightning"
    whole = load_file(SHARDED / "engines" / "lightning.whole.safetensors")
    torch.save({"state_dict": whole, "epoch": 1}, tmp_path / "last.ckpt")
    assert ckptool("diff", opened(folder), tmp_path / "last.ckpt").exit_code == 1


@pytest.mark.parametrize("place", [["-o", "out.pt"], ["--in-place"], []])
@pytest.mark.parametrize("folder", ["rank_ema/files", "folders/diffusers/checkpoint-4"])
def test_promotion_into_several_files_is_refused_before_a_place_is_asked_for(
    folder, place, ckptool, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    refused = ckptool("promote-ema", SHARDED / folder, *place)
    assert refused.exit_code == 2
    assert "cannot be patched: it is several files" in refused.stderr
    assert "extract-ema" in refused.stderr
    assert not [*tmp_path.iterdir()]

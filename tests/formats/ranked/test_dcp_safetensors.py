"""Shards of safetensors that torch's distributed checkpoint wrote, against its consolidator."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.ranked.sharding_info import KEY
from ckptool.tensors.as_torch import as_torch
from ckptool.tree.nodes import CompositeTensor
from helpers.paths import FIXTURES

ROOT = FIXTURES / "sharded" / "dcp_safetensors"
WHOLE = ".whole.safetensors"
CASES = sorted(path.name.removesuffix(WHOLE) for path in ROOT.glob(f"*{WHOLE}"))
SHARDS = [(case, path.name) for case in CASES for path in sorted((ROOT / case).iterdir())]


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_those_of_the_consolidator(case, ckptool, tmp_path):
    wanted = load_file(ROOT / f"{case}{WHOLE}")
    with open_checkpoint(ROOT / case) as checkpoint:
        found = as_torch(checkpoint.tree, checkpoint.reader)
    out = tmp_path / "model.safetensors"
    assert ckptool("extract-ema", f"{ROOT / case}#@model", "-o", out).exit_code == 0
    for made in (found, load_file(out)):
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("case", CASES)
def test_that_the_number_of_ranks_is_not_stated_is_told(case, ckptool):
    verdict = ckptool("verify", ROOT / case, "--json")
    assert verdict.exit_code == 0
    assert [f["rule"] for f in verdict.json["findings"]] == ["CK125"]


@pytest.mark.parametrize(("case", "name"), SHARDS)
def test_a_lone_shard_is_never_the_whole(case, name, ckptool, tmp_path):
    alone = shutil.copy(ROOT / case / name, tmp_path)
    with open_checkpoint(alone) as checkpoint:
        assert all(isinstance(node, CompositeTensor) for node in checkpoint.tree.values())
    refused = ckptool("extract-ema", f"{alone}#@model", "-o", tmp_path / "out.safetensors")
    assert refused.exit_code == 2
    assert "name the directory with the shards of all ranks" in refused.stderr
    assert not (tmp_path / "out.safetensors").exists()
    found = ckptool("verify", alone, "--json").json["findings"]
    assert "CK114" in {finding["rule"] for finding in found}


def test_what_rank_0_alone_wrote_is_whole(ckptool):
    (file,) = (ROOT / "full").glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        assert KEY in opened.metadata()
    for path in (file, ROOT / "full"):
        assert ckptool("verify", path, "--json").exit_code == 0
    with open_checkpoint(file) as checkpoint:
        found = as_torch(checkpoint.tree, checkpoint.reader)
    assert all(torch.equal(found[name], tensor) for name, tensor in load_file(file).items())


# ------------------------------------------------------------------------------------ not one save


def copied(case, tmp_path):
    return shutil.copytree(ROOT / case, tmp_path / case)


@pytest.mark.parametrize(("case", "name"), [row for row in SHARDS if "shard-00001" in row[1]])
def test_a_hole_is_refused(case, name, tmp_path):
    folder = copied(case, tmp_path)
    (folder / name).unlink()
    with pytest.raises(DamagedError, match="do not cover"):
        open_checkpoint(folder).close()


@pytest.mark.parametrize(("case", "name"), SHARDS)
def test_a_shard_too_many_is_refused(case, name, tmp_path):
    folder = copied(case, tmp_path)
    shutil.copy(folder / name, folder / re.sub(r"shard-\d+", "shard-00009", name))
    with pytest.raises(DamagedError, match="another file has too"):
        open_checkpoint(folder).close()


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        ("model-00001-of", None, "2 groups of files, and no file is of number 1"),
        ("model-00002-of", None, "2 groups of files, and no file is of number 2"),
        ("of-00002", "of-00001", "1 groups of files, and one is of 2"),
        ("of-00002", "of-00003", "3 groups of files, and no file is of number 3"),
        ("of-00002", "of-999999999", "999,999,999 groups of files, and no file is of number 3"),
        ("model-00002-of-00002", "model-00002-of-00003", "the number of groups of tensors is 2 in"),
    ],
)
def test_a_group_of_tensors_that_is_not_there_is_refused(pattern, replacement, said, tmp_path):
    """Its tensors would be missing without a word: each rank writes a file for each group."""
    folder = copied("rows_many", tmp_path)
    for path in sorted(folder.glob(f"*{pattern}*")):
        if replacement is None:
            path.unlink()
        else:
            path.rename(folder / path.name.replace(pattern, replacement))
    with pytest.raises(DamagedError, match=said):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "no JSON object"),
        ('{"w": {"saved_offsets": [-1]}}', "does not say where its part begins"),
        ('{"w": {"saved_offsets": [1e3]}}', "does not say where its part begins"),
        ('{"w": {"saved_offsets": [true]}}', "does not say where its part begins"),
        ('{"w": {"saved_offsets": [9223372036854775808]}}', "does not say where"),
        ('{"w": []}', "does not say where its part begins"),
    ],
)
def test_offsets_that_torch_does_not_write_are_refused(text, said, tmp_path):
    path = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={KEY: text})
    with pytest.raises(DamagedError, match=said):
        open_checkpoint(path).close()


@pytest.mark.parametrize("offsets", [{"w": [0, 0]}, {"w": [2**62]}, {"x": [0]}, {"w": [1]}])
def test_parts_that_cannot_be_one_tensor_are_refused(offsets, tmp_path):
    info = {name: {"saved_offsets": at} for name, at in offsets.items()}
    path = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={KEY: json.dumps(info)})
    with pytest.raises(DamagedError):
        open_checkpoint(tmp_path).close()

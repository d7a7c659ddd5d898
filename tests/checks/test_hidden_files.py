"""A file that would run code is told wherever it lies in a directory of many others."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import save_file
from torch import zeros

from ckptool.formats import unopened
from helpers.assembling import call, program, text
from helpers.paths import FIXTURES

RUNS = program(call("os.system", text("true")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A trainer's directory with more files than are looked at."""
    monkeypatch.setattr(unopened, "MAX_FILES", 5)
    save_file({"w": zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_text(json.dumps({"epoch": 1}))
    for number in range(1_200):
        (tmp_path / f"n{number:05}.txt").touch()
    return tmp_path


def told(output) -> set[str]:
    return {found["rule"] for found in output.json["findings"]}


def test_filler_does_not_hide_a_trainers_file(folder, ckptool):
    (folder / "optimizer.pt").write_bytes(RUNS)
    output = ckptool("verify", folder, "--json")
    assert output.exit_code == 1
    assert "CK201" in told(output)


def test_filler_does_not_hide_a_file_with_a_checkpoints_suffix_below(folder, ckptool):
    below = folder / "z" / "below"
    below.mkdir(parents=True)
    (below / "other.pth").write_bytes(RUNS)
    output = ckptool("verify", folder, "--json")
    assert output.exit_code == 1
    assert "CK201" in told(output)


def test_what_was_not_looked_at_is_not_called_safe(folder, ckptool):
    (folder / "z_without_a_suffix").write_bytes(RUNS)
    output = ckptool("verify", folder, "--json")
    states = {check["rule"]: check["state"] for check in output.json["checks"]}
    assert states["CK201"] == "not-checked"
    assert "were not looked at" in str(output)
    assert ckptool("verify", folder, "--require", "safe").exit_code == 1


def test_a_format_without_pickles_does_not_hide_a_pickle_beside_it(tmp_path, ckptool):
    shards = tmp_path / "rows"
    shutil.copytree(FIXTURES / "sharded" / "dcp_safetensors" / "rows", shards)
    assert ckptool("verify", shards).exit_code == 0
    (shards / "payload").write_bytes(RUNS)
    output = ckptool("verify", shards, "--json")
    assert output.exit_code == 1
    assert "CK201" in told(output)

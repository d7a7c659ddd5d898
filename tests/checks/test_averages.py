"""``--require ema`` says of genuine checkpoints what extract-ema would do with them.

``tests/ema/test_fixture_manifest.py`` shows which of them extract-ema takes.
"""

from __future__ import annotations

import json

import pytest
import torch

from helpers.manifests import is_taken
from helpers.paths import FIXTURES

ROWS = {row["file"]: row for row in json.loads((FIXTURES / "ema" / "manifest.json").read_text())}


@pytest.mark.parametrize("name", ROWS)
def test_an_ema_is_there_where_extract_takes_one(name, ckptool):
    path = FIXTURES / "ema" / name
    verified = ckptool("verify", path, "--require", "ema", "--select", "CK401", "--json")
    (check,) = [check for check in verified.json["checks"] if check["rule"] == "CK401"]
    assert check["state"] == ("passed" if is_taken(ROWS[name]) else "failed")


def test_as_many_tensors_are_not_covered_as_inspect_says(tmp_path, ckptool):
    """A counter that the EMA lacks counts with the weights beside it."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).state_dict()
    average = {name: model[name] * 0.9 for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    torch.save({"model": model, "ema": average}, tmp_path / "a.pt")
    (found,) = ckptool("inspect", tmp_path / "a.pt", "--json").json["ema"]["candidates"]
    told = ckptool("verify", tmp_path / "a.pt", "--rules", "CK409", "--json").json["findings"]
    assert len(found["missing"]) == 3
    assert told[0]["message"].startswith("3 of the model's 7 tensors are not in it: ")

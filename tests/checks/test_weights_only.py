"""Whether torch's safe loader takes a file is judged by torch, and so is the line that we print."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals

import samples
from ckptool.checks.weights_only import ALLOWED, allowing_line
from ckptool.commands.verify import Request, chosen_rules, verify_file
from paths import ZOO

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_the_table_is_that_of_torch():
    assert _get_allowed_globals().keys() == ALLOWED


def check_of(path):
    report = verify_file(path, Request(chosen_rules({"select": ["CK202"]})))
    (check,) = report.checks
    return check.state, report.findings


def torch_takes(path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 - torch refuses with many
        return False
    return True


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("sample", samples.EVERYWHERE, ids=lambda sample: sample.__name__)
def test_torch_agrees(sample, new, tmp_path):
    if sample is samples.nested_tensor and not new:
        pytest.skip("torch builds it before it has read the sizes, which are anything then")
    path = tmp_path / "sample.pt"
    torch.save(sample(), path, _use_new_zipfile_serialization=new)
    state, _ = check_of(path)
    assert (state == "passed") <= torch_takes(path)  # never called loadable when it is not
    assert (state == "failed") <= (not torch_takes(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(protocol, tmp_path):
    path = tmp_path / "sample.pt"
    torch.save({"a": torch.ones(2), "b": [1, "x"]}, path, pickle_protocol=protocol)
    expected = {2: "passed", 3: "not-checked"}.get(protocol, "failed")
    assert check_of(path)[0] == expected
    if expected != "not-checked":
        assert torch_takes(path) == (expected == "passed")


def rows():
    if ZOO is None:
        return []
    samples = json.loads((ZOO / "manifest.json").read_text())["samples"]
    return [row for row in samples if row["loads_with_weights_only"] is not None]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["id"])
def test_the_zoo_agrees(row):
    state, _ = check_of(ZOO / row["file"])
    if state != "not-checked":
        assert (state == "passed") == row["loads_with_weights_only"]


class Local(nn.Module):
    """Not importable from elsewhere under this name by accident."""


LOADABLE = {
    "namespace": lambda: argparse.Namespace(lr=0.1, layers=(1, 2)),
    "numpy": lambda: {"a": np.arange(3.0), "b": np.float64(2.5), "c": np.arange(2, dtype="i2")},
    "path": lambda: pathlib.PurePosixPath("/a/b"),
    "module": lambda: nn.Linear(2, 3),
    "numpy state": lambda: np.random.RandomState(3).get_state(),
}


@pytest.mark.parametrize("name", LOADABLE)
def test_the_line_makes_torch_take_it(name, tmp_path):
    """In a fresh process: what is allowed stays allowed."""
    path = tmp_path / "sample.pt"
    torch.save(LOADABLE[name](), path)
    state, (found,) = check_of(path)
    assert state == "failed"
    assert not torch_takes(path)
    code = f"{found.remedy}\nimport torch; torch.load({str(path)!r}, weights_only=True)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "value",
    [collections.defaultdict(list, a=[1]), collections.deque([1]), samples.Tracker({"a": 1})],
)
def test_where_no_allowing_helps_that_is_said(value, tmp_path):
    path = tmp_path / "sample.pt"
    torch.save({"value": value}, path)
    _, (found,) = check_of(path)
    assert "no allowing helps" in (found.remedy or "")
    with torch.serialization.safe_globals([type(value), list]):
        assert not torch_takes(path)


@pytest.mark.parametrize(
    "name", ["a.b; import os", "os.system", "x.__import__('os')", "a.b\nimport os", "nt.remove"]
)
def test_a_name_that_is_code_makes_no_line(name):
    assert allowing_line(["argparse.Namespace", name]) is None

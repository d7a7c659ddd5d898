"""The helper for test suites: silent on what is right, and in words on what is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ckptool.errors import CkptError
from ckptool.testing import assert_checkpoint, assert_checkpoints_close
from helpers.output import environment
from helpers.paths import FIXTURES

AVERAGED = FIXTURES / "ema" / "has_ema" / "late.pt"


def test_a_checkpoint_that_is_right_is_silent():
    assert_checkpoint(AVERAGED, require=["ema"])


def test_the_message_says_what_failed_and_nothing_else(tmp_path):
    damaged = tmp_path / "half.pt"
    damaged.write_bytes(AVERAGED.read_bytes()[: AVERAGED.stat().st_size // 2])
    with pytest.raises(AssertionError, match=r"half\.pt") as raised:
        assert_checkpoint(damaged)
    said = str(raised.value)
    assert "Errors\n  CK10" in said
    assert "Not checked" not in said


def test_what_was_required_and_not_checked_is_in_the_message(tmp_path):
    with pytest.raises(AssertionError, match="required, but not checked"):
        assert_checkpoint(AVERAGED, require=["loads"])


def test_a_rule_that_is_ignored_does_not_fail():
    with pytest.raises(AssertionError, match="CK"):
        assert_checkpoint(AVERAGED, require=["loads"])
    assert_checkpoint(AVERAGED, require=["loads"], ignore=["CK6"])


def test_a_part_of_a_checkpoint_is_checked_alone():
    assert_checkpoint(f"{AVERAGED}#@ema", require=["finite"], like=f"{AVERAGED}#@model")
    with pytest.raises(AssertionError, match="not of a part"):
        assert_checkpoint(f"{AVERAGED}#@ema", require=["resume"])


def test_what_cannot_be_looked_at_is_no_failure_of_the_checkpoint(tmp_path):
    with pytest.raises(CkptError, match="no such file"):
        assert_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(CkptError, match="nothing to require"):
        assert_checkpoint(AVERAGED, require=["everything"])


def test_the_helper_needs_neither_torch_nor_pytest():
    code = "import sys, ckptool.testing; print({'torch', 'pytest', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.fixture
def paths(tmp_path):
    one = {"net.delta_A": torch.ones(3), "net.w": torch.ones(3), "epoch": 1}
    other = {"net.delta_A": torch.ones(3) + 1e-6, "net.w": torch.ones(3), "epoch": 1}
    for name, tree in (("a", one), ("b", other)):
        torch.save(tree, tmp_path / f"{name}.pt")
    return tmp_path / "a.pt", tmp_path / "b.pt"


def test_close_checkpoints_pass(paths):
    assert_checkpoints_close(paths[0], paths[0])
    assert_checkpoints_close(*paths, tolerances={"*.delta_*": 1e-5})
    assert_checkpoints_close(*paths, tolerances={"*.delta_*": (0, 1e-5)}, strict=True)
    assert_checkpoints_close(*paths, ignore=["*.delta_*"])


def test_the_message_is_the_report(paths):
    with pytest.raises(AssertionError, match=r"net\.delta_A") as caught:
        assert_checkpoints_close(*paths, tolerances={"*.delta_*": 1e-8})
    assert str(caught.value).startswith("different  ")
    assert "first difference" in str(caught.value)


def test_what_cannot_be_read_is_no_difference(paths, tmp_path):
    (tmp_path / "c.pt").write_bytes(b"")
    with pytest.raises(CkptError):
        assert_checkpoints_close(paths[0], tmp_path / "c.pt")


def test_one_glob_or_requirement_alone_is_not_taken_for_its_letters(tmp_path):
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    torch.save({"w": torch.ones(2), "a": torch.ones(2)}, one)
    torch.save({"w": torch.ones(2), "a": torch.zeros(2)}, other)
    with pytest.raises(AssertionError):
        assert_checkpoints_close(one, other, ignore="encoder.a")
    assert_checkpoints_close(one, other, match="w")
    assert_checkpoints_close(one, other, ignore="a")
    assert_checkpoint(AVERAGED, require="ema")

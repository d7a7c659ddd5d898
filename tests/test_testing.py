"""The assertions that users of the library write."""

from __future__ import annotations

import pytest
import torch

from ckptool import CkptError
from ckptool.testing import assert_checkpoints_close


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
    assert "first in " in str(caught.value)


def test_what_cannot_be_read_is_no_difference(paths, tmp_path):
    (tmp_path / "c.pt").write_bytes(b"")
    with pytest.raises(CkptError):
        assert_checkpoints_close(paths[0], tmp_path / "c.pt")

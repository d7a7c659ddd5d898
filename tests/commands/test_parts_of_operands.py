"""Operands: a whole checkpoint, a part of one, a directory of several."""

from __future__ import annotations

import pytest

from ckptool.commands.operands import as_operand, checkpoint_files, is_run, open_part
from ckptool.contents.selection import Operand
from ckptool.errors import AddressError, UnreadableError
from helpers.making import save, weights


def test_a_path_is_a_whole_checkpoint(tmp_path):
    assert as_operand(tmp_path) == Operand(tmp_path, None)
    assert as_operand(Operand(tmp_path, "model")).address == "model"


def test_a_part_is_all_that_a_command_sees(tmp_path):
    path = save(tmp_path / "last.ckpt", weights(), epoch=3)
    with open_part(Operand(path)) as whole:
        assert "epoch" in whole.tree
        assert not whole.is_part
    with open_part(Operand(path, "state_dict")) as part:
        assert list(part.tree) == list(weights())
        assert part.is_part
    with pytest.raises(AddressError, match="no 'nothing'") as caught:
        open_part(Operand(path, "nothing"))
    assert caught.value.path == path


def test_a_directory_of_checkpoints_is_a_run(tmp_path):
    assert is_run(tmp_path)
    assert not is_run(tmp_path / "missing")
    with pytest.raises(UnreadableError, match="without checkpoint files"):
        checkpoint_files(tmp_path)
    two = [save(tmp_path / name, weights()) for name in ("b.pt", "a.ckpt")]
    (tmp_path / "log.csv").write_text("step,loss")
    assert checkpoint_files(tmp_path) == sorted(two)
    assert not is_run(two[0])

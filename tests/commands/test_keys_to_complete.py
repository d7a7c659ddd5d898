"""Keys inside a checkpoint, as completion offers them."""

from __future__ import annotations

import pytest

from ckptool.commands.operands import keys_at
from ckptool.errors import AddressError
from helpers.making import save, weights


def test_keys_of_a_container(tmp_path):
    path = save(tmp_path / "last.ckpt", weights(), epoch=3)
    top = keys_at(str(path), "")
    assert {"state_dict/", "ema_state_dict/", "epoch"} <= set(top)
    assert set(keys_at(str(path), "state_dict")) == set(weights())


def test_there_is_nothing(tmp_path):
    path = save(tmp_path / "last.ckpt", weights())
    with pytest.raises(AddressError):
        keys_at(str(path), "nothing")

"""The distance of the EMA weights by layer: that of diff, or nothing where there are no two."""

from __future__ import annotations

import torch

from ckptool.commands.diff import diff
from ckptool.commands.ema_layers import ema_layers
from ckptool.process.progress import no_progress
from helpers.paths import FIXTURES

PATH = FIXTURES / "ema" / "plain_loop" / "last.pt"


def test_it_is_that_of_the_two_compared():
    found = ema_layers(PATH, (), no_progress)
    assert found is not None
    assert found.layers == diff(f"{PATH}#@model", f"{PATH}#@ema").layers


def test_without_an_ema_there_is_none(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "a.pt")
    assert ema_layers(tmp_path / "a.pt", (), no_progress) is None

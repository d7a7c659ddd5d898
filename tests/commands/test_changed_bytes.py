"""Bytes that do not fit their checksum are found before anything is built on them."""

from __future__ import annotations

import pytest
import torch

from ckptool.formats import open_checkpoint
from helpers.making import average_of, resumable, save, weights
from helpers.paths import contents

COMMANDS = ("extract-ema", "promote-ema")


@pytest.fixture
def path(tmp_path):
    model = weights(large=torch.randn(40, 50))
    return save(tmp_path / "last.ckpt", model, average_of(model), **resumable(model))


def flip(path, slot, name, bit=0):
    """Change one bit of the mantissa of a tensor's last value: still finite."""
    with open_checkpoint(path) as checkpoint:
        span = checkpoint.tree[slot][name].chunks[0].span
    data = bytearray(path.read_bytes())
    data[span.offset + span.nbytes - 4] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("command", COMMANDS)
def test_a_flipped_bit_of_the_average_is_refused(command, bit, path, ckptool, tmp_path):
    flip(path, "ema_state_dict", "large", bit)
    before = contents(tmp_path)
    done = ckptool(command, path, "-o", tmp_path / "out.pt", "--json")
    assert (done.exit_code, done.json["error"]["code"]) == (2, "damaged")
    assert done.json["error"]["address"] == "large"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_force_takes_it_and_says_so(command, path, ckptool, tmp_path):
    flip(path, "ema_state_dict", "large")
    done = ckptool(command, path, "-o", tmp_path / "out.pt", "--force", "--json")
    assert done.exit_code == 0
    assert [(f["rule"], f["severity"]) for f in done.json["findings"]] == [("CK103", "warning")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flipped_bit_of_the_pickle_is_refused(command, path, ckptool, tmp_path):
    data = bytearray(path.read_bytes())
    at = data.index(b"global_step") + len("global_step")
    at = data.index(b"M\xbc\x02", at) + 1  # BININT2 700
    data[at] ^= 1
    path.write_bytes(data)
    done = ckptool(command, path, "-o", tmp_path / "out.pt")
    assert done.exit_code == 2
    assert "data.pkl" in done.stderr


def test_what_the_model_lends_is_looked_at_too(ckptool, tmp_path):
    model = weights(large=torch.randn(40, 50))
    average = average_of(model)
    del average["large"]
    path = save(tmp_path / "last.ckpt", model, average)
    flip(path, "state_dict", "large")
    done = ckptool("extract-ema", path, "-o", tmp_path / "out.pt")
    assert done.exit_code == 2
    assert "large" in done.stderr


def test_what_is_not_written_is_not_looked_at(path, ckptool, tmp_path):
    flip(path, "state_dict", "large")
    assert ckptool("extract-ema", path, "-o", tmp_path / "out.pt").exit_code == 0

"""A file that a big-endian machine saved is the same checkpoint in every command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from helpers.making import average_of, save, weights
from helpers.tensors import assert_same_tensors, load


def swapped(table: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with the bytes of each element in the other order."""
    made = {name: tensor.clone() for name, tensor in table.items()}
    for tensor in made.values():
        tensor.untyped_storage().byteswap(tensor.dtype)
    return made


@pytest.fixture
def big(tmp_path, monkeypatch) -> Path:
    """What torch.save writes on such a machine."""
    with monkeypatch.context() as context:
        context.setattr(sys, "byteorder", "big")
        return save(tmp_path / "big.pt", swapped(weights()), swapped(average_of(weights())))


@pytest.fixture
def little(tmp_path) -> Path:
    return save(tmp_path / "little.pt", weights(), average_of(weights()))


def test_it_is_equal_to_the_little_endian_file(big, little, ckptool):
    assert_same_tensors(load(big)["state_dict"], weights())
    assert ckptool("diff", big, little).exit_code == 0


def test_its_values_are_taken_and_put_in_order(big, little, tmp_path, ckptool):
    for name, path in (("big", big), ("little", little)):
        assert ckptool("extract-ema", path, "-o", tmp_path / f"{name}.ema.pt").exit_code == 0
        assert ckptool("promote-ema", path, "-o", tmp_path / f"{name}.new.pt").exit_code == 0
    assert_same_tensors(load(tmp_path / "big.ema.pt"), load(tmp_path / "little.ema.pt"))
    new = load(tmp_path / "big.new.pt")["state_dict"]
    assert_same_tensors(new, load(tmp_path / "little.new.pt")["state_dict"])


def test_it_passes(big, ckptool):
    assert ckptool("verify", big, "--bytes", "--values").exit_code == 0


@pytest.mark.parametrize("word", [b"LITTLE", b"middle", b"", b"little\n"])
def test_another_word_for_the_order_is_refused_as_torch_refuses_it(word, little, ckptool):
    import zipfile

    with zipfile.ZipFile(little) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(little, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, word if name.endswith("/byteorder") else content)
    with pytest.raises(ValueError, match="endianness"):
        torch.load(little)
    assert ckptool("verify", little).exit_code == 1

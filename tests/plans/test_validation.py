"""The validation of weights before they are written, beside whatever writes them."""

from __future__ import annotations

import pytest
import torch

from ckptool.contents.inventory import take_inventory
from ckptool.errors import DamagedError, EmaRefusedError
from ckptool.formats import open_checkpoint
from ckptool.plans.validation import refuse_lossy, validation
from ckptool.tensors.casting import Losses
from helpers.making import weights


@pytest.fixture
def validated(tmp_path):
    """``validated(state, losses, averaged, …)``: the findings on a state dict in a file."""

    def run(state, losses=None, averaged=None, *, damage=None, force=False):
        path = tmp_path / "weights.pt"
        torch.save(state, path)
        if damage is not None:
            raw = path.read_bytes()
            assert raw.count(damage) == 1
            path.write_bytes(raw.replace(damage, damage[::-1]))
        with open_checkpoint(path) as checkpoint:
            tensors = take_inventory(checkpoint.tree).tables[0].tensors
            names = tensors.keys() if averaged is None else averaged
            with validation(checkpoint, tensors, names, losses or {}, force=force) as judge:
                return [(found.rule, found.address, str(found.severity)) for found in judge()]

    return run


BAD = weights() | {"head.bias": torch.tensor([1.0, float("nan"), float("inf")])}


def test_sound_weights_have_no_findings(validated):
    assert validated(weights()) == []


def test_averages_that_are_not_finite_are_refused_with_their_number(validated):
    with pytest.raises(EmaRefusedError, match=r"1 tensor, 2 values of head\.bias"):
        validated(BAD)


def test_with_force_they_are_reported(validated):
    assert validated(BAD, force=True) == [("CK301", "head.bias", "warning")]


def test_what_is_no_average_need_not_be_finite_and_is_reported(validated):
    assert validated(BAD, averaged={"stem.weight"}) == [("CK301", "head.bias", "warning")]


def test_a_mask_is_no_fault(validated):
    mask = weights() | {"mask": torch.tensor([0.0, float("-inf"), 0.0])}
    assert validated(mask, averaged={"stem.weight"}) == []


def test_bytes_that_do_not_fit_their_checksum_are_refused(validated):
    marked = weights() | {"mark": torch.tensor(list(b"ABCDEFGH12345678"), dtype=torch.uint8)}
    with pytest.raises(DamagedError, match="do not fit its checksum") as caught:
        validated(marked, damage=b"ABCDEFGH12345678")
    assert caught.value.address == "mark"
    found = validated(marked, damage=b"ABCDEFGH12345678", force=True)
    assert found == [("CK103", "mark", "warning")]


def test_the_losses_of_casts_are_judged_when_the_block_has_counted_them(validated):
    with pytest.raises(EmaRefusedError, match="3 values that the type of the cast cannot hold"):
        validated(weights(), {"scale": Losses(overflowed=3)})
    assert validated(weights(), {"scale": Losses(vanished=2)}) == [("CK801", "scale", "warning")]


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (Losses(overflowed=1), "overflow in the cast: 1 value"),
        (Losses(vanished=2), "0 after the cast: 2 values"),
        (Losses(cut=3), "fraction lost in the cast: 3 values"),
        (Losses(1, 1), "overflow in the cast: 1 value, 0 after the cast: 1 value"),
    ],
)
def test_every_kind_of_loss_is_told(lost, told):
    (found,) = refuse_lossy(None, {"w": lost, "kept": Losses()}, force=True)
    assert (found.rule, found.address, found.message) == ("CK801", "w", told)

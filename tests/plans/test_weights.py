"""The weights that a command takes: which candidate, which refusal, which comparison."""

from __future__ import annotations

import pytest
import torch

from ckptool.ema.candidates import CHOSEN
from ckptool.errors import EmaAmbiguousError, EmaNotFoundError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.plans.weights import take_weights
from helpers.making import average_of, weights


@pytest.fixture
def taken(tmp_path):
    """``taken(content, …)``: what is taken of a checkpoint with that content."""

    def run(content, which="ema", **options):
        torch.save(content, tmp_path / "last.pt")
        with open_checkpoint(tmp_path / "last.pt") as checkpoint:
            return take_weights(checkpoint, which, **options)

    return run


MODEL, EMA = weights(), average_of(weights())
BOTH = {"state_dict": MODEL, "ema_state_dict": EMA}


@pytest.mark.parametrize("which", ["ema", "auto"])
def test_the_average_is_the_candidate(which, taken):
    location, candidate = taken(BOTH, which)
    assert candidate is location.selected
    assert candidate.address == "ema_state_dict"


def test_the_raw_weights_are_the_models_own(taken):
    location, candidate = taken(BOTH, "model")
    assert (candidate.address, candidate.kind) == ("state_dict", CHOSEN)
    assert [c.address for c in location.beside] == ["ema_state_dict"]


def test_auto_takes_the_raw_weights_where_there_is_no_average(taken):
    assert taken({"state_dict": MODEL}, "auto").candidate.address == "state_dict"


def test_auto_does_not_take_the_raw_weights_for_one_of_several_averages(taken):
    with pytest.raises(EmaAmbiguousError):
        taken({**BOTH, "swa_state_dict": average_of(EMA)}, "auto")


def test_a_model_that_is_named_is_taken_as_it_stands(taken):
    location, candidate = taken(BOTH, "model", model="ema_state_dict")
    assert candidate is None
    assert location.model.address == ("ema_state_dict",)


def test_a_role_stands_for_an_address(taken):
    assert taken(BOTH, ema="@model").candidate.address == "state_dict"
    assert taken(BOTH, ema="@ema").candidate.address == "ema_state_dict"


def test_without_a_model_its_raw_weights_are_not_there(taken):
    with pytest.raises(EmaNotFoundError, match="where models are kept"):
        taken({"notes": {"deep": {"deeper": torch.zeros(2)}}}, "model")


def test_a_refusal_hints_at_the_command_that_asked(taken):
    with pytest.raises(EmaAmbiguousError) as caught:
        taken({"state_dict": MODEL, "teacher": EMA}, command="ckptool promote-ema -o out.pt")
    assert caught.value.hint.startswith("ckptool promote-ema -o out.pt ")


def test_the_models_buffers_are_missing_keys_of_the_average(taken):
    candidate = taken(BOTH, buffers="model").candidate
    assert candidate.alignment.missing_keys == ("steps",)
    assert "steps" in taken(BOTH).candidate.alignment.pairs


def test_the_models_buffers_need_a_model_beside(taken):
    with pytest.raises(UsageError, match="--buffers model"):
        taken(BOTH, ema="@model", buffers="model")
    assert taken(BOTH, "model", buffers="model").candidate.address == "state_dict"


# --------------------------------------------------------------------------------- compared in full


@pytest.fixture
def copies():
    """Two averages that differ in one number, which no sample of a few is likely to read."""
    first = {
        "layer.weight": torch.randn(300, 300),
        "layer.bias": torch.randn(300),
        "a": torch.ones(1),
    }
    second = {name: tensor.clone() for name, tensor in first.items()}
    second["layer.weight"][251, 77] += 1
    model = {name: tensor + 0.1 for name, tensor in first.items()}
    return {"state_dict": model, "ema_state_dict": first, "ema": second}


def test_state_dicts_that_were_assumed_to_be_equal_are_compared_in_full(copies, taken):
    with pytest.raises(EmaAmbiguousError, match="in a sample of the values, but not in all"):
        taken(copies)


def test_the_full_comparison_can_be_left_out(copies, taken):
    assert taken(copies, compared_in_full=False).candidate.assumed_equal

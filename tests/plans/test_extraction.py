"""The state dict that is extracted: its names, what comes from the model, what is refused."""

from __future__ import annotations

import pytest
import torch

from ckptool.ema.locate import locate_ema
from ckptool.errors import EmaAmbiguousError, EmaRefusedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.plans.extraction import complete, plan_extraction, plan_model, renamed
from helpers.making import average_of, weights

MODEL, EMA = weights(), average_of(weights())


@pytest.fixture
def planned(tmp_path):
    """``planned(content, names, …)``: the plan for a checkpoint with that content."""

    def run(content, names="model", **addresses):
        torch.save(content, tmp_path / "last.pt")
        with open_checkpoint(tmp_path / "last.pt") as checkpoint:
            location = locate_ema(checkpoint, **addresses)
            return plan_extraction(location, location.selected, names)

    return run


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {"state_dict": prefixed("module.", MODEL), "ema": prefixed("net.", EMA)}


@pytest.mark.parametrize(("names", "prefix"), [("model", "module."), ("bare", ""), ("ema", "net.")])
def test_the_names_that_are_asked_for(names, prefix, planned):
    plan = planned(WRAPPED, names)
    assert list(plan.tensors) == [prefix + name for name in MODEL]
    assert plan.averaged == set(plan.tensors)


def test_what_the_average_lacks_comes_from_the_model(planned):
    partial = {name: tensor for name, tensor in EMA.items() if name != "steps"}
    plan = planned({"state_dict": MODEL, "ema": partial})
    assert list(plan.tensors) == list(MODEL)
    assert plan.from_model == ("steps",)
    assert plan.averaged == set(partial)


def test_what_comes_from_the_model_gets_the_prefix_of_the_average(planned):
    partial = {name: tensor for name, tensor in WRAPPED["ema"].items() if name != "net.steps"}
    plan = planned({**WRAPPED, "ema": partial}, "ema")
    assert plan.from_model == ("net.steps",)
    assert "net.steps" in plan.tensors


def test_names_that_the_model_lacks_are_dropped_and_named(planned):
    plan = planned({"state_dict": MODEL, "ema": {**EMA, "head.extra": torch.ones(3)}})
    assert plan.dropped == ("head.extra",)
    assert "head.extra" not in plan.tensors


def test_a_state_dict_that_is_no_average_of_the_model_is_refused(planned):
    other = {f"other.{i}.weight": torch.randn(7, i + 1) for i in range(4)}
    with pytest.raises(EmaRefusedError, match="none of its 4 names and shapes"):
        planned({"state_dict": MODEL, "rest": other}, ema="rest", model="state_dict")


def test_tied_names_are_listed_with_the_first_of_each(planned):
    tied = {**MODEL, "tie.weight": MODEL["head.weight"]}
    average = {**EMA, "tie.weight": EMA["head.weight"]}
    assert planned({"state_dict": tied, "ema": average}).tied == {"tie.weight": "head.weight"}


def test_what_is_not_plain_is_refused_by_name(planned):
    plan = planned({"a": {**MODEL, "head.weight": MODEL["head.weight"].to_sparse()}}, ema="a")
    assert list(plan.refused) == ["head.weight"]
    assert "head.weight" not in plan.tensors
    with pytest.raises(UnsupportedError, match="1 of 5 weights"):
        complete(plan)


def test_the_models_own_is_taken_where_there_is_no_candidate(tmp_path):
    torch.save({"state_dict": MODEL, "ema": EMA}, tmp_path / "last.pt")
    with open_checkpoint(tmp_path / "last.pt") as checkpoint:
        location = locate_ema(checkpoint)
        plan = plan_extraction(location, None, "model")
        assert plan == plan_model(location.model, "model", location)
        assert plan.tensors == dict(location.model.entries)


def test_two_tensors_never_get_one_name(planned):
    plan = planned(WRAPPED)
    with pytest.raises(EmaAmbiguousError, match="several tensors would be called 'x'") as caught:
        renamed(plan, lambda _: "x", "without wrappers", "--names model")
    assert caught.value.hint == "keep the names apart: --names model"

"""What the file says of its averages is shown as it says it; nothing is made up."""

from __future__ import annotations

import argparse

import pytest
import torch

from ckptool.ema.locate import locate_ema
from helpers.tensors import assert_same_tensors, load
from helpers.twins import drawn, in_memory, near, save, under

MODEL = drawn()
EMA = near(MODEL)


def meta(content) -> dict:
    (candidate,) = locate_ema(in_memory(content)).candidates
    return dict(candidate.meta)


def test_nothing_said_is_nothing_shown():
    assert meta({"model": MODEL, "ema": EMA, "decay": 0.9, "epoch": 3}) == {}


def test_scalars_beside_the_table():
    ema = {"shadow": EMA, "decay": 0.999, "num_updates": 12, "name": "x", "lr": 0.1}
    assert meta({"model": MODEL, "ema": ema}) == {"decay": 0.999, "num_updates": 12}


def test_tensors_of_one_element_are_numbers():
    ema = {"shadow": EMA, "decay": torch.tensor(0.5), "num_updates": torch.tensor([12])}
    assert meta({"model": MODEL, "ema": ema}) == {"decay": 0.5, "num_updates": 12}


def test_counters_among_the_weights():
    found = locate_ema(in_memory({"model": MODEL, "ema": {"n_averaged": torch.tensor(4), **EMA}}))
    assert found.selected.meta == {"n_averaged": 4}
    assert found.selected.alignment.unexpected_keys == ()


def test_a_weight_of_the_model_called_like_a_counter_is_a_weight():
    model, ema = MODEL | {"step": torch.tensor(1.0)}, EMA | {"step": torch.tensor(1.1)}
    found = locate_ema(in_memory({"model": model, "ema": ema}))
    assert "step" in found.selected.alignment.pairs
    assert found.selected.meta == {}


def test_beside_a_prefix():
    content = {**under("online_model.", MODEL), **under("ema_model.", EMA)}
    assert meta(content | {"step": torch.tensor(7)}) == {"step": 7}


def test_marked_container_further_up():
    assert meta({"model": MODEL, "ema": {"state": {"model": EMA}, "count": 4.5}}) == {"count": 4.5}


def test_place_of_a_layout():
    content = {"state_dict": MODEL, "ema_state_dict": EMA, "ema_meta": {"decay": 0.9}}
    assert meta(content) == {"decay": 0.9}


def test_nearest_wins():
    ema = {"state": {"model": EMA, "decay": 0.1}, "decay": 0.2}
    assert meta({"model": MODEL, "ema": ema}) == {"decay": 0.1}
    inside = {"ema_model.decay": torch.tensor(0.5), **under("ema_model.", EMA)}
    assert meta({"model": MODEL, "ema": {**inside, "decay": 0.25}}) == {"decay": 0.5}


def test_flags_at_the_top():
    content = {"model_state_dict": MODEL, "ema_state_dict": EMA, "has_ema": True, "step": 5}
    assert meta(content) == {"has_ema": True}


def test_flag_of_none_is_shown_as_it_is():
    assert meta({"model": MODEL, "ema": {"shadow": EMA, "decay": None}}) == {"decay": None}


def test_extra_state_inside_a_state_dict():
    state = {**under("model.", MODEL), **under("ema.", EMA), "ema._extra_state": {"decay": 0.9}}
    assert meta({"state_dict": state}) == {"decay": 0.9}


class Box:
    """A configuration object of a library that is not installed."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


SETTINGS = {
    "dict": ({"args": {"ema_decay": 0.99, "lr": 1.0}}, "args/ema_decay", 0.99),
    "namespace": ({"args": argparse.Namespace(ema_decay=0.99)}, "args/ema_decay", 0.99),
    "nested": ({"hyper_parameters": {"ema": {"decay": 0.9}}}, "hyper_parameters/ema/decay", 0.9),
    "object": ({"cfg": Box(ema=Box(decay=0.9))}, "cfg/ema/decay", 0.9),
    "boxes": (
        {"config": Box(_content={"ema": Box(_content={"decay": Box(_val=0.9)})})},
        "config/ema/decay", 0.9,
    ),
    "rate": ({"opt": {"ema_rate": 0.9}}, "opt/ema_rate", 0.9),
    "model's": ({"args": {"model_ema_decay": 0.9, "weight_decay": 0.1}}, "args/model_ema_decay",
                0.9),
    "twice": ({"args": {"ema_decay": 0.9}, "config": {"ema": {"decay": 0.9}}}, "args/ema_decay",
              0.9),
}  # fmt: skip


@pytest.fixture
def described(ckptool, tmp_path):
    """The candidate of a plain loop's checkpoint with these parts."""

    def run(parts) -> dict:
        counted = {"n_averaged": torch.tensor(120), **under("module.", EMA)}
        path = save(tmp_path / "last.pt", {"model": MODEL, "ema": counted, **parts})
        (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
        return candidate

    return run


@pytest.mark.parametrize("case", SETTINGS)
def test_decay_among_the_settings(case, described, ckptool, tmp_path):
    parts, place, decay = SETTINGS[case]
    candidate = described(parts)
    assert candidate["meta"] == {"n_averaged": 120, "decay": decay}
    assert candidate["meta_at"] == {"decay": place}
    assert f"decay {decay} ({place})" in ckptool("inspect", tmp_path / "last.pt")


@pytest.mark.parametrize(
    "parts",
    [
        {"args": {"weight_decay": 0.1, "decay": 0.5}},
        {"args": {"vq": {"ema_decay": 0.99}}},
        {"args": {"loss_ema_decay": 0.99}},
        {"config": {"schema_decay": 0.9}},
        {"args": {"ema_decay": 0.9}, "config": {"ema_decay": 0.99}},  # which?
        {"args": {"ema_decay": None}},
        {"args": {"ema_decay": True}},
        {"extra": {"ema_decay": 0.9}},  # no settings
    ],
)
def test_what_is_no_decay_of_this_average(parts, described):
    assert described(parts)["meta"] == {"n_averaged": 120}


def test_what_stands_beside_the_average_wins(described):
    candidate = described({"args": {"ema_decay": 0.9}, "ema_decay": 0.8})
    assert candidate["meta"] == {"n_averaged": 120, "ema_decay": 0.8}
    assert candidate["meta_at"] == {}


def test_what_stands_beside_a_copy_wins_too(ckptool, tmp_path):
    content = {"state_dict": MODEL, "ema_state_dict": EMA, "args": {"ema_decay": 0.5}}
    content["callbacks"] = {"EMACallback": {"ema": EMA, "decay": 0.9}}
    path = save(tmp_path / "last.pt", content)
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert (candidate["meta"], candidate["meta_at"]) == ({"decay": 0.9}, {})


def verdicts(ckptool, path) -> dict[str, str]:
    checks = ckptool("verify", path, "--select", "CK4", "--json").json["checks"]
    return {check["rule"]: check["state"] for check in checks}


def test_rules_about_the_decay_run_on_plain_loops(described, ckptool, tmp_path):
    described({"args": {"ema_decay": 0.999}, "global_step": 120})
    found = verdicts(ckptool, tmp_path / "last.pt")
    assert {rule: found[rule] for rule in ("CK407", "CK410", "CK411", "CK413")} == {
        "CK407": "failed", "CK410": "passed", "CK411": "passed", "CK413": "passed",
    }  # fmt: skip


@pytest.mark.parametrize("setting", ["ema_warmup", "model_ema_warmup", "model_ema_steps"])
def test_a_decay_that_is_smaller_at_first_tells_no_age(setting, described, ckptool, tmp_path):
    described({"args": {"ema_decay": 0.999, setting: 32}})
    assert verdicts(ckptool, tmp_path / "last.pt")["CK407"] == "not-checked"


COUNTS = {  # (updates, the run's counters, whether they disagree)
    "one a step": (120, {"global_step": 120}, False),
    "one a batch, four batches a step": (480, {"global_step": 120}, False),
    "every tenth": (12, {"global_step": 120}, False),
    "the step of an epoch": (120, {"step": 7, "epoch": 3}, False),
    "a run that forgot its step": (1130, {"global_step": 120}, True),
    "never": (0, {"global_step": 120}, True),
}


@pytest.mark.parametrize("case", COUNTS)
def test_count_of_updates_against_the_steps(case, ckptool, tmp_path):
    updates, counters, wrong = COUNTS[case]
    ema = {"module": EMA, "updates": updates}
    path = save(tmp_path / "last.pt", {"model": MODEL, "ema": ema, **counters})
    assert verdicts(ckptool, path)["CK411"] == ("failed" if wrong else "passed")


@pytest.mark.parametrize("more", [{}, {"args": {"lr": 1}}, {"optimizer": {}, "args": {}}])
def test_a_plain_loop_is_called_so(more, described):
    assert described(more)["layout"] == "model-ema"


def test_one_with_the_keys_of_dit_is_called_so(described):
    assert described({"opt": {}, "args": {}})["layout"] == "dit"


# ------------------------------------------------------------------------------ names by a table


@pytest.mark.parametrize("is_inverse", [False, True])
def test_a_table_of_names_beside_the_average(is_inverse, ckptool, tmp_path):
    made = {name: f"{len(MODEL) - i:03}" for i, name in enumerate(MODEL)}
    originals = {f"0.{name}": value for name, value in made.items()}  # of a ModuleList
    table = {value: name for name, value in originals.items()} if is_inverse else originals
    ema = {"params": {made[name]: tensor for name, tensor in EMA.items()}, "names": table}
    path = save(tmp_path / "last.pt", {"model": MODEL, "ema": ema})
    output = tmp_path / "out.pt"
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    assert_same_tensors(load(output), EMA)


def test_branches_behind_a_wrapper(ckptool, tmp_path):
    """Names that begin with the branch pair behind the wrapper's prefix, each with its own."""
    model = {**under("model.metal.", MODEL), **under("model.water.", near(MODEL, 5))}
    ema = {**under("metal.", EMA), **under("water.", near(MODEL, 6))}
    output = tmp_path / "out.pt"
    path = save(tmp_path / "last.pt", {"model": model, "ema": {"decay": 0.98, "model": ema}})
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    assert_same_tensors(load(output), under("model.", ema))


def test_every_wrapper_is_dropped_in_any_order(ckptool, tmp_path):
    model = under("_forward_module.module._orig_mod.", MODEL)
    output = tmp_path / "out.pt"
    path = save(tmp_path / "last.pt", {"state_dict": model, "ema_state_dict": EMA})
    for place, wanted in ((path, EMA), (f"{path}#@model", MODEL)):
        args = (place, "-o", output, "--names", "bare", "--force")
        assert ckptool("extract-ema", *args).exit_code == 0
        assert_same_tensors(load(output), wanted)


def test_lists_parallel_to_the_tracks():
    tracks = [EMA, near(MODEL, 2), near(MODEL, 3)]
    content = {"net": MODEL, "ema": {"emas": tracks, "stds": [0.05, 0.1, 0.2], "names": ["a"] * 3}}
    found = locate_ema(in_memory(content))
    assert [dict(c.meta) for c in found.candidates] == [{"std": s} for s in (0.05, 0.1, 0.2)]


def test_lists_of_another_length_say_nothing():
    tracks = [EMA, near(MODEL, 2)]
    found = locate_ema(in_memory({"net": MODEL, "ema": {"emas": tracks, "stds": [0.05]}}))
    assert [dict(c.meta) for c in found.candidates] == [{}, {}]


def test_aliases_add_what_they_know():
    content = {
        "state_dict": MODEL,
        "ema_state_dict": EMA,
        "ema_meta": {"num_updates": 3},
        "callbacks": {"EMACallback": {"ema": EMA, "decay": 0.9}},
    }
    assert meta(content) == {"num_updates": 3, "decay": 0.9}

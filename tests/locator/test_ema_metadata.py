"""What the file says of its averages is shown as it says it; nothing is made up."""

from __future__ import annotations

import torch
from twins import drawn, in_memory, near, under

from ckptool.ema import locate_ema

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

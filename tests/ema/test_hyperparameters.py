"""The decay among the settings of a run: words decide, and two values are none."""

from __future__ import annotations

import pytest

from ckptool.ema.metadata import ema_settings, varies_decay


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"args": {"ema_decay": 0.999}}, "args/ema_decay"),
        ({"config": {"ema": {"decay": 0.999}}}, "config/ema/decay"),
        ({"hparams": {"model": {"ema_rate": 0.999}}}, "hparams/model/ema_rate"),
        ({"cfg": {"_content": {"ema": {"decay": {"_val": 0.999}}}}}, "cfg/ema/decay"),
    ],
    ids=str,
)
def test_a_marked_decay_is_found(tree, where):
    assert ema_settings(tree) == {"decay": (where, 0.999)}


@pytest.mark.parametrize(
    "tree",
    [
        {"args": {"decay": 0.999}},
        {"args": {"weight_decay": 0.1, "ema": True}},
        {"args": {"ema_decay": True}},
        {"args": {"vq_ema_decay": 0.99}},
        {"args": {"bn": {"ema_decay": 0.99}}},
        {"results": {"ema_decay": 0.999}},
        {"args": {"ema_decay": 0.999, "ema": {"rate": 0.99}}},
        {},
        [],
    ],
    ids=str,
)
def test_other_decays_and_contradictions_are_none(tree):
    assert ema_settings(tree) == {}


def test_the_same_value_twice_is_the_one_with_the_shorter_key_path():
    tree = {"args": {"ema_decay": 0.9, "net": {"ema": {"decay": 0.9}}}}
    assert ema_settings(tree) == {"decay": ("args/ema_decay", 0.9)}


def test_what_makes_it_another_in_the_beginning_comes_with_it():
    tree = {"args": {"ema": {"decay": 0.9, "warmup_steps": 10, "every": 2}}}
    assert ema_settings(tree) == {
        "decay": ("args/ema/decay", 0.9),
        "warmup_steps": ("args/ema/warmup_steps", 10),
    }
    assert varies_decay("inv_gamma")
    assert not varies_decay("every")

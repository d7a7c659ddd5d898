"""The walk of CONTRIBUTING: what a house layout needs, from nothing to a row that knows a swap."""

from __future__ import annotations

import pytest

from helpers.tensors import assert_same_tensors, load
from helpers.twins import drawn, near, save, under

MODEL = under("net.", drawn())
EMA = {name.removeprefix("net."): tensor for name, tensor in near(MODEL).items()}
AVERAGED = under("net.", EMA)

ROW = """
[[layouts]]
name = "acme"
library = "the trainer of Acme"
ema_at = "trainer/*/ema_weights"
model_at = "trainer/weights"
meta_at = ["trainer/bookkeeping"]
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A checkpoint of a trainer that nobody knows."""
    monkeypatch.chdir(tmp_path)
    trainer = {
        "weights": MODEL,
        "hook_3": {"ema_weights": EMA},
        "bookkeeping": {"decay": 0.75, "num_updates": 8, "host": "a"},
    }
    return save(tmp_path / "run" / "last.pt", {"trainer": trainer, "epoch": 2})


@pytest.fixture
def candidates(path, ckptool):
    return lambda: ckptool("inspect", path, "--json").json["ema"]["candidates"]


def test_the_rules_find_it_without_a_row(path, candidates, ckptool, tmp_path):
    (candidate,) = candidates()
    assert candidate["address"] == "trainer/hook_3/ema_weights"
    assert (candidate["model"], candidate["naming"]) == ("trainer/weights", "prefixed")
    assert (candidate["layout"], candidate["library"], candidate["meta"]) == (None, None, {})
    assert ckptool("extract-ema", path, "-o", tmp_path / "ema.pt").exit_code == 0
    assert_same_tensors(load(tmp_path / "ema.pt"), AVERAGED)


def test_a_row_names_it_and_its_metadata(path, candidates, ckptool, tmp_path):
    (tmp_path / "ckptool.toml").write_text(ROW)
    (candidate,) = candidates()
    assert (candidate["layout"], candidate["library"]) == ("acme", "the trainer of Acme")
    assert candidate["meta"] == {"decay": 0.75, "num_updates": 8}
    assert "acme" in ckptool("layouts")
    assert "the trainer of Acme" in ckptool("inspect", path)


def test_a_row_replaces_no_evidence(path, candidates, ckptool, tmp_path):
    """Where names and shapes do not pair, a row finds nothing."""
    other = save(
        tmp_path / "run" / "other.pt",
        {
            "trainer": {
                "weights": MODEL,
                "hook": {"ema_weights": drawn({"x": (9,), "y": (8,), "z": (7,)})},
            }
        },
    )
    (tmp_path / "ckptool.toml").write_text(ROW)
    assert ckptool("inspect", other, "--json").json["ema"]["status"] == "none"


def test_a_row_takes_nothing_away_from_others(ckptool, tmp_path, monkeypatch):
    (tmp_path / "ckptool.toml").write_text(ROW)
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "run" / "timm.pt", {"state_dict": MODEL, "state_dict_ema": AVERAGED})
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["layout"] == "timm"


def test_a_row_may_say_that_the_writer_swaps(candidates, ckptool, tmp_path, monkeypatch):
    """Then the averages are in the model's slot, and what is called ema is never taken."""
    trainer = {"weights": AVERAGED, "hook_3": {"ema_weights": drawn()}}
    path = save(tmp_path / "run" / "swapped.pt", {"trainer": trainer})
    (tmp_path / "ckptool.toml").write_text(ROW + "swapped = true\n")
    monkeypatch.chdir(tmp_path)
    found = ckptool("inspect", path, "--json").json["ema"]
    assert (found["status"], found["main_slot"], found["selected"]) == (
        "found",
        "averaged",
        "trainer/weights",
    )
    assert [c["kind"] for c in found["candidates"]] == ["ema", "raw"]
    assert "holds the raw weights" in ckptool("layouts")
    assert ckptool("extract-ema", path, "-o", tmp_path / "ema.pt").exit_code == 0
    assert_same_tensors(load(tmp_path / "ema.pt"), AVERAGED)
    assert ckptool("promote-ema", path, "-o", tmp_path / "promoted.pt").exit_code == 0
    assert (tmp_path / "promoted.pt").read_bytes() == path.read_bytes()


def test_a_row_may_say_so_by_a_flag(ckptool, tmp_path, monkeypatch):
    (tmp_path / "ckptool.toml").write_text(
        ROW + 'swapped = true\nwhen = ["trainer/evaluating", true]\n'
    )
    monkeypatch.chdir(tmp_path)
    for evaluating, slot in ((True, "averaged"), (False, "raw")):
        trainer = {"weights": MODEL, "hook": {"ema_weights": EMA}, "evaluating": evaluating}
        path = save(tmp_path / "run" / "last.pt", {"trainer": trainer})
        assert ckptool("inspect", path, "--json").json["ema"]["main_slot"] == slot


def test_a_row_may_say_that_the_slot_holds_the_averages(ckptool, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.ckptool.layouts]]\nname = "acme"\nlibrary = "Acme"\n'
        'ema_at = "trainer/weights"\nmodel_at = "trainer/weights"\n'
        'beside = ["trainer/raw_weights"]\n'
    )
    monkeypatch.chdir(tmp_path)
    path = save(
        tmp_path / "run" / "last.pt", {"trainer": {"weights": AVERAGED, "raw_weights": MODEL}}
    )
    found = ckptool("inspect", path, "--json").json["ema"]
    assert (found["status"], found["main_slot"], found["selected"]) == (
        "found",
        "averaged",
        "trainer/weights",
    )
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert_same_tensors(load(tmp_path / "ema.pt"), AVERAGED)

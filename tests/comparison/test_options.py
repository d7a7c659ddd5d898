"""The configuration of ``diff`` and what was typed, merged."""

from __future__ import annotations

import pytest

from ckptool.cli.config import OPTIONS
from ckptool.comparison.pairing import merge_selection
from ckptool.comparison.tolerances import Tolerance, merge_tolerances
from ckptool.errors import UsageError


def test_nothing_configured_and_nothing_typed_is_exact():
    assert merge_tolerances({}).at("any") == Tolerance()
    assert merge_selection({}) == ((), (), ())


def test_a_typed_number_replaces_the_configured_one_also_if_it_is_zero():
    rule = merge_tolerances({"atol": 1.0, "rtol": 2.0, "ulp": 3}, atol=0.0, ulp=4).at("any")
    assert (rule.atol, rule.rtol, rule.ulp) == (0.0, 2.0, 4)


def test_a_typed_glob_replaces_the_configured_row_of_equal_text():
    chosen = merge_tolerances({"tolerance": {"a.*": 1.0, "b.*": [2, 3]}}, special=["a.*=5"])
    assert chosen.at("a.w").atol == 5
    assert chosen.at("b.w")[1:3] == (2, 3)
    assert chosen.at("c.w").atol == 0


def test_the_more_specific_glob_decides():
    chosen = merge_tolerances({}, special=["model.*=1", "*=2", "model.head.*=3"])
    assert [chosen.at(at).atol for at in ("model.head.w", "model.w", "x")] == [3, 1, 2]


def test_a_negative_tolerance_is_refused():
    with pytest.raises(UsageError):
        merge_tolerances({}, atol=-1.0)


def test_typed_globs_to_match_replace_and_those_to_ignore_come_on_top():
    settings = {"match": ["a.*"], "ignore": ["*.x"], "map": ["p=q"]}
    chosen = merge_selection(settings, match=["b.*"], ignore=["*.y"], renames=["r=s"])
    assert chosen.match == ("b.*",)
    assert chosen.ignore == ("*.x", "*.y")
    assert [(pattern.pattern, text) for pattern, text in chosen.renames] == [("p", "q"), ("r", "s")]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("atol", 1e-6, "1e-6"), ("atol", 0, True), ("rtol", 1, -1), ("ulp", 2, 2.0),
        ("strict", True, 1), ("match", ["a"], "a"), ("ignore", [], [1]), ("tolerance", {}, []),
    ],
)  # fmt: skip
def test_the_form_of_each_setting(key, good, bad):
    assert OPTIONS["diff"][key](good)
    assert not OPTIONS["diff"][key](bad)

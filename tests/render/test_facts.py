"""Titled blocks of labels and values, and how addresses and findings are shown in them."""

from __future__ import annotations

import pytest

from ckptool.render.facts import MAIN_SLOT, TOP, facts, place, short
from ckptool.render.page import line


def test_a_block_has_a_title_and_a_row_a_fact():
    grid = facts("Training", [("epoch", "3"), (line("own"), "x")])
    rows = [[cell.text for cell in row] for row in grid.rows]
    assert grid.title == "Training"
    assert rows == [["  epoch", "3"], ["own", "x"]]


@pytest.mark.parametrize("nothing", [None, ""])
def test_the_whole_has_a_name(nothing):
    assert place(nothing) == TOP
    assert place("model/w") == "model/w"


def test_names_are_short_and_harmless():
    assert len(short("x" * 500)) < 100
    assert short("a\x1b[31m\n").isprintable()


def test_every_state_of_the_models_slot_has_words():
    assert set(MAIN_SLOT) == {"raw", "averaged", "unknown"}

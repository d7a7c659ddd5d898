"""Repeated layers become one line, and nothing else does."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ckptool.render.folding import fold
from ckptool.reports.base import TensorStats
from ckptool.reports.inspect import TensorEntry


def entry(address: str, shape=(2,), dtype="float32", stats=None) -> TensorEntry:
    return TensorEntry(address, dtype, shape, 4, "cpu", stats)


def lines(*entries: TensorEntry) -> list[str]:
    """The rows, with their depth as blanks and their multiplicity."""
    return [
        "  " * row.depth + row.label + (f" x{row.times}" if row.times > 1 else "")
        for row in fold(entries)
    ]


def test_neighbours_that_are_equal_are_folded():
    entries = [entry(f"blocks.{i}.{name}") for i in range(12) for name in ("w", "b")]
    assert lines(*entries) == ["blocks", "  0…11 x12", "    w", "    b"]


def test_a_chain_is_one_line():
    assert lines(entry("model/encoder.attn.qkv.weight")) == ["model/encoder.attn.qkv.weight"]


def test_another_shape_type_or_name_breaks_a_run():
    for odd in (entry("l.2.w", shape=(3,)), entry("l.2.w", dtype="int8"), entry("l.2.v")):
        entries = [entry("l.0.w"), entry("l.1.w"), odd, entry("l.3.w"), entry("l.4.w")]
        folded = lines(*entries)
        assert [line for line in folded if " x2" in line] == ["  0…1.w x2", "  3…4.w x2"]


def test_only_numbers_are_folded():
    assert lines(entry("left.w"), entry("right.w")) == ["left.w", "right.w"]


def test_layers_within_layers_are_folded():
    entries = [entry(f"s.{i}.{j}.w") for i in range(2) for j in range(3)]
    assert lines(*entries) == ["s", "  0…1 x2", "    0…2.w x3"]


def test_numbers_of_their_own_keep_tensors_apart():
    stats = [TensorStats(0.0, float(i), 0.0, 0.0, 0.0, 0) for i in range(3)]
    entries = [entry(f"l.{i}.w", stats=one) for i, one in enumerate(stats)]
    assert lines(*entries) == ["l", "  0.w", "  1.w", "  2.w"]


def test_sections_stay_apart():
    entries = [entry("state_dict/a.w"), entry("state_dict/a.b"), entry("ema/a.w")]
    assert lines(*entries) == ["state_dict/a", "  w", "  b", "ema/a.w"]


def test_a_name_that_is_also_a_prefix_is_shown():
    assert lines(entry("a"), entry("a.b")) == ["a", "  b"]


def test_a_very_deep_name_makes_few_levels():
    assert len(lines(entry(".".join(["x"] * 10_000)), entry(".".join(["x"] * 9_999)))) < 50


NAMES = st.lists(st.sampled_from(["0", "1", "2", "w", "b", "l"]), min_size=1, max_size=4)


@given(st.lists(NAMES.map(".".join), unique=True, max_size=12))
def test_no_tensor_is_lost(names):
    """A row stands for as many tensors as it and the rows around it say."""
    total, around = 0, []
    for row in fold(map(entry, names)):
        del around[row.depth :]
        around.append(row.times)
        total += math.prod(around) if row.entry is not None else 0
    assert total == len(names)

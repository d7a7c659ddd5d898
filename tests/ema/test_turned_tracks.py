"""Averages that are stored a parameter at a time, turned round into tables."""

from __future__ import annotations

from ckptool.contents.inventory import Table, take_inventory
from ckptool.dtypes import BY_NAME
from ckptool.ema.groups import by_ending, last_components, turned_round
from ckptool.tree.nodes import TensorRef

NAMES = ("stem.weight", "stem.bias", "head.weight")


def leaf() -> TensorRef:
    return TensorRef(BY_NAME["float32"], (2,), ())


def state(names=NAMES, tracks=("fast", "slow")):
    return {name: {"ema_params": {track: leaf() for track in tracks}} for name in names}


ENDINGS = frozenset({"weight", "bias"})


def test_names_of_tensors_end_as_their_last_component():
    tables = take_inventory({"model": {name: leaf() for name in NAMES}}).tables
    assert last_components(tables) == ENDINGS


def test_a_dict_of_each_parameter_becomes_a_table_of_each_track():
    tree = {"ema": {"state": state()}}
    tables = take_inventory(tree).tables
    found, used = turned_round(tables, tree, ENDINGS)
    assert {table.inside: set(table.entries) for table in found} == {
        ("ema_params", "fast"): set(NAMES), ("ema_params", "slow"): set(NAMES),
    }  # fmt: skip
    assert {table.address for table in found} == {("ema", "state")}
    assert len(used) == len(NAMES)
    assert found[0].entries["stem.bias"] is tree["ema"]["state"]["stem.bias"]["ema_params"]["fast"]


def test_two_parameters_are_no_table():
    tree = {"ema": {"state": state(NAMES[:2])}}
    assert turned_round(take_inventory(tree).tables, tree, ENDINGS) == ([], set())


def test_flat_names_are_told_by_their_endings():
    entries = {f"{name}.{track}": leaf() for name in NAMES for track in ("fast", "slow")}
    tracks = by_ending(Table(("ema",), entries, entries), ENDINGS)
    assert {table.suffix: set(table.entries) for table in tracks} == {
        ".fast": set(NAMES), ".slow": set(NAMES),
    }  # fmt: skip


def test_names_that_end_as_a_models_have_no_tracks():
    entries = {name: leaf() for name in NAMES}
    assert by_ending(Table(("ema",), entries, entries), ENDINGS) == []

"""Parts of a table under marked prefixes; numbered names are lists in disguise."""

from __future__ import annotations

import pytest

from ckptool.contents.inventory import Table
from ckptool.ema.groups import ordered, split_groups
from helpers.twins import ref


def table(*names: str, prefix: str = "", is_list: bool = False) -> Table:
    entries = {name: ref(2) for name in names}
    return Table((), entries, entries, prefix=prefix, is_list=is_list)


def split(*names: str) -> tuple[list[str], dict[str, list[str]]]:
    """(names of the rest, prefix -> names under it)."""
    rest, groups = split_groups(table(*names))
    return list(rest.entries), {g.table.prefix: list(g.table.entries) for g in groups}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("model_ema.w", "model_ema."),
        ("ema_model.a.w", "ema_model."),
        ("0.ema_model.w", "0.ema_model."),
        ("net.ema.shadow.w", "net.ema."),
        ("module.encoder_k.w", "module.encoder_k."),
        ("actor_target.mu.w", "actor_target."),
        ("ema_head_weight", "ema_"),
        ("avg_model.ema.w", "avg_model."),
    ],
)
def test_name_goes_under_its_first_marked_component(name, prefix):
    assert split("other.w", name) == (["other.w"], {prefix: [name.removeprefix(prefix)]})


@pytest.mark.parametrize(
    "name",
    [
        "semantic.w",
        "w.ema",
        "online_model.w",
        "ema.online.w",
        "emau.mu",
        "emaw",
        "net.schema.w",
        "x",
    ],
)
def test_name_without_a_marked_component_before_its_last_stays(name):
    assert split("other.w", name) == (["other.w", name], {})


def test_several_groups():
    rest, groups = split("a.w", "a_ema.w", "b.w", "b_target.w")
    assert rest == ["a.w", "b.w"]
    assert groups == {"a_ema.": ["w"], "b_target.": ["w"]}


def test_a_group_behind_thousands_of_names_is_found():
    names = [f"blocks.{i}.w" for i in range(2_000)]
    rest, groups = split(*names, *(f"model_ema.{name}" for name in names))
    assert (rest, groups) == (names, {"model_ema.": names})


def test_kinds_of_groups():
    _, groups = split_groups(table("a_ema.w", "b_target.w", "swa_model.w"))
    assert [g.marker.kind for g in groups] == ["ema", "target-network", "swa"]


def test_prefix_of_a_part_is_kept():
    _, (group,) = split_groups(table("ema_model.w", prefix="trainer."))
    assert group.table.prefix == "trainer.ema_model."


def test_table_without_groups_is_itself():
    whole = table("a.w", "b.w")
    assert split_groups(whole) == (whole, ())


def test_lists_have_no_groups():
    whole = table("0", "1", is_list=True)
    assert split_groups(whole) == (whole, ())


# ----------------------------------------------------------------------------------- numbered names


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("w_0", "w_1", "w_2"), ["w_0", "w_1", "w_2"]),
        (("p.2", "p.0", "p.1"), ["p.0", "p.1", "p.2"]),
        (("0", "1", "2"), ["0", "1", "2"]),
        (
            tuple(f"s.{i}" for i in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)),
            [f"s.{i}" for i in range(12)],
        ),
        (("w_0", "w_1"), None),  # too few to be sure
        (("w_0", "w_1", "w_3"), None),  # a number is missing
        (("w_1", "w_2", "w_3"), None),  # not from the beginning
        (("w_0", "v_1", "w_2"), None),
        (("w_0", "w_1", "w_2", "bias"), None),
        (("a.0.w", "a.1.w", "a.2.w"), None),
    ],
)
def test_numbered_names_are_a_sequence(names, wanted):
    found = ordered(table(*names))
    assert (found and [name for name, _ in found]) == wanted


def test_list_is_a_sequence_as_it_stands():
    assert [name for name, _ in ordered(table("0", "1", is_list=True))] == ["0", "1"]

"""Objects as plain data, from the calls of a pickle; no file is involved."""

from __future__ import annotations

import pytest

from ckptool.errors import UnsupportedError
from ckptool.formats.pickles.literal import Made
from ckptool.plans.plain_data import as_plain_data
from ckptool.reports.write import PlainReport
from ckptool.tree.nodes import GlobalRef


def made(name: str, *args: object, **more: object) -> Made:
    module, _, last = name.rpartition(".")
    return Made(GlobalRef(module, last), args, **more)


def test_an_object_that_is_met_twice_stays_one():
    space = made("argparse.Namespace", is_new=True, state={"lr": 0.1}, has_state=True)
    tree = {"a": space, "b": [space]}
    data = as_plain_data(tree, {})
    assert data.tree["a"] == {"lr": 0.1}
    assert data.tree["a"] is data.tree["b"][0]
    assert data.replaced == [PlainReport("a", "argparse.Namespace", "dict")]


def test_an_object_that_holds_itself():
    space = made("argparse.Namespace", is_new=True, state={}, has_state=True)
    space.state["me"] = space
    found = as_plain_data([space], {}).tree[0]
    assert found["me"] is found


def test_a_function_that_is_called_is_no_dict():
    """By its name: only of a class is it known that the items are all that there is."""
    with pytest.raises(UnsupportedError, match=r"x \(lab\.registry\)"):
        as_plain_data({"x": made("lab.registry", items={"a": 1})}, {})
    assert as_plain_data({"x": made("lab.Registry", items={"a": 1})}, {}).tree == {"x": {"a": 1}}


def test_attributes_that_are_the_items_once_more():
    twice = made("lab.Config", is_new=True, items={"a": 1}, state={"a": 1}, has_state=True)
    assert as_plain_data([twice], {}).tree == [{"a": 1}]
    other = made("lab.Config", is_new=True, items={"a": 1}, state={"a": 2}, has_state=True)
    with pytest.raises(UnsupportedError, match=r"lab\.Config"):
        as_plain_data([other], {})


def test_the_storage_of_an_array_gets_a_key_that_is_free():
    kind = made("numpy.dtype", "f4", False, True, has_state=True,
                state=(3, "<", None, None, None, -1, -1, 0))  # fmt: skip
    array = made("numpy.core.multiarray._reconstruct", GlobalRef("numpy", "ndarray"), (0,), b"b",
                 has_state=True, state=(1, (2,), kind, False, bytes(8)))  # fmt: skip
    data = as_plain_data({"a": array}, {"0": None, "array0": None})
    assert list(data.storages) == ["array1"]
    assert data.tree["a"].args[0].key == "array1"


def test_a_name_that_two_values_would_have():
    keys = {made("pathlib.PosixPath", "a"): 1, "a": 2}
    with pytest.raises(UnsupportedError, match="keys that are no plain data"):
        as_plain_data({"x": keys}, {})


def test_all_that_is_refused_is_counted():
    tree = {"part": [made("lab.f", at) for at in range(30)]}
    with pytest.raises(
        UnsupportedError, match=r"part/0 \(lab.f\).*part/19 .* and 10 more"
    ) as caught:
        as_plain_data(tree, {})
    assert (
        caught.value.hint == "leave them out: --drop part; or take the weights alone: PATH#@model"
    )


def frozen(*members: object) -> Made:
    """A frozenset, as protocol 2 writes it."""
    return made("builtins.frozenset", [*members])


@pytest.mark.parametrize("one", [frozen(1), (frozen(1), 2), frozenset([1]), (frozenset([1]), 2)])
def test_a_frozenset_as_a_key_is_refused(one):
    with pytest.raises(UnsupportedError, match=r"f \(keys that are no plain data\)"):
        as_plain_data({"f": {one: 2}}, {})


@pytest.mark.parametrize(
    "outer",
    [
        made("builtins.set", [frozen(1), 2]),
        {frozenset([1]), 2},
        frozen(frozen(1)),
        frozenset([frozenset([1])]),
        made("builtins.set", [(frozen(1), 2)]),
    ],
)
def test_a_frozenset_in_a_set_is_refused(outer):
    with pytest.raises(UnsupportedError, match=r"s \(a set of frozensets, which become sets\)"):
        as_plain_data({"s": outer}, {})


def test_a_frozenset_elsewhere_becomes_a_set():
    found = as_plain_data({"a": [frozen(1, 2)], "b": frozenset([3])}, {})
    assert found.tree["b"] == {3}
    assert (found.tree["a"][0].name, found.tree["a"][0].args) == ("builtins.set", ([1, 2],))
    assert [row.became for row in found.replaced] == ["set", "set"]

"""Which tensors of two sides belong together: by key path, wrapper, content and prefix."""

from __future__ import annotations

import re

import pytest

from ckptool.comparison.leaves import Digest
from ckptool.comparison.pairing import Pair, Selection, pair_up, select_leaves
from ckptool.contents.renames import parse_rename
from ckptool.errors import UsageError


def tensor(content, shape=(2, 3)):
    return Digest("float32", shape, 24, content)


def paired(a, b):
    pairs = pair_up(a, b, lambda leaves: [leaf.sha256 for leaf in leaves])
    return [tuple(pair) for pair in pairs]


def test_equal_key_paths_are_paired_whatever_their_values():
    assert paired({"w": tensor("1"), "n": 1}, {"n": 2, "w": tensor("2")}) == [
        ("w", "w"),
        ("n", "n"),
    ]


def test_a_wrapper_does_not_keep_names_apart():
    assert paired({"module.w": tensor("1")}, {"w": tensor("2")}) == [("module.w", "w")]


def test_a_wrapper_that_leaves_two_equal_names_pairs_none():
    ours = {"module.w": tensor("1"), "_orig_mod.w": tensor("2")}
    assert paired(ours, {"w": tensor("3")}) == [
        (None, "w"), ("module.w", None), ("_orig_mod.w", None),
    ]  # fmt: skip


def test_equal_content_pairs_what_was_renamed():
    assert paired({"old": tensor("1")}, {"new": tensor("1")}) == [("old", "new")]


def test_content_that_two_tensors_have_pairs_none():
    ours = {"x": tensor("1"), "y": tensor("1")}
    assert paired(ours, {"z": tensor("1")}) == [(None, "z"), ("x", None), ("y", None)]


def test_plain_values_are_never_renamed():
    assert paired({"old": 1}, {"new": 1}) == [(None, "new"), ("old", None)]


def test_what_only_the_second_side_has_follows_its_predecessor():
    ours = {"a": 1, "c": 1}
    assert paired(ours, {"a": 1, "b": 1, "c": 1, "d": 1}) == [
        ("a", "a"), (None, "b"), ("c", "c"), (None, "d"),
    ]  # fmt: skip


def test_a_pair_has_the_name_of_the_first_side():
    assert Pair("x", "y").address == "x"
    assert Pair(None, "y").address == "y"


def test_maps_rename_before_globs_choose():
    selection = Selection(("model.*",), ("*.bias",), (parse_rename(r"^net\.=model."),))
    leaves = {"net.w": 1, "net.bias": 2, "head.w": 3}
    assert select_leaves(leaves, selection) == {"model.w": 1}


def test_words_name_a_key_or_a_role_before_maps_rename():
    selection = Selection(("model",), ("net/w",), (parse_rename("^net/=body/"),))
    leaves = {"net/w": 1, "net/b": 2, "adam/lr": 3}
    roles = {"net": "model", "adam": "optimizer"}
    assert select_leaves(leaves, selection, roles) == {"body/w": 1, "body/b": 2}
    assert select_leaves(leaves, Selection(ignore=("optimizer", "net"))) == {"adam/lr": 3}
    assert select_leaves({"w": 1}, Selection(("model",)), {"": "model"}) == {"w": 1}


def test_two_places_with_one_name_are_refused():
    with pytest.raises(UsageError, match="one name: 'x'"):
        select_leaves({"x": 1, "y": 2}, Selection(renames=(parse_rename("y=x"),)))


def test_a_map_is_cut_at_the_last_equals_sign():
    assert parse_rename("a=b=c") == (re.compile("a=b"), "c")


@pytest.mark.parametrize("text", ["no mark", "=x", "(=x", r"a=\1", r"a=\g<none>"])
def test_what_is_no_map_is_refused(text):
    with pytest.raises(UsageError):
        parse_rename(text)

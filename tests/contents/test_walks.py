"""Walks level by level, and what they do about containers that are reached in several ways."""

from __future__ import annotations

from ckptool.contents.walks import ByLevel


def walked(tree, levels, found=()):
    walk = ByLevel(levels, ((), tree, *found))
    seen = []
    for address, node, *_ in walk:
        seen.append(address)
        for key, child in node.items() if isinstance(node, dict) else ():
            walk.enter((*address, key), child, *found)
    return seen


def test_upper_levels_come_first_and_lower_ones_not_at_all():
    tree = {"a": {"b": {"c": {}}}, "d": {}}
    assert walked(tree, 1) == [()]
    assert walked(tree, 3) == [(), ("a",), ("d",), ("a", "b")]


def test_a_container_under_many_keys_comes_once():
    shared = {"inside": {}}
    assert walked(dict.fromkeys(range(1000), shared), 9) == [(), (0,), (0, "inside")]


def test_a_circle_ends():
    tree = {}
    tree["self"] = tree
    assert walked(tree, 1 << 30) == [()]


def test_it_comes_again_where_something_else_was_found_on_the_way():
    shared = {}
    walk = ByLevel(2, ((), {}, False))
    steps = []
    for step in walk:
        steps.append(step[::2])
        if not step[0]:
            walk.enter(("plain",), shared, False)
            walk.enter(("result",), shared, True)
            walk.enter(("again",), shared, True)
    assert steps == [((), False), (("plain",), False), (("result",), True)]

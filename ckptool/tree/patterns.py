"""Patterns of key paths: ``callbacks/*/ema``, in which ``*`` stands for any text of one key."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase, translate

from ckptool.tree.nodes import Tree, is_container
from ckptool.tree.walking import children

WILD = frozenset("*?[")


def nodes_at(tree: Tree, pattern: str) -> list[Tree]:
    """Return the nodes, leaves included, whose key paths match a pattern."""
    level = [tree]
    for part in pattern.split("/"):
        level = [below for node in level if is_container(node) for below in _under(node, part)]
    return level


def fits(pattern: str, address: str) -> bool:
    """Return whether a key path in text matches a pattern."""
    if pattern.count("/") != address.count("/"):
        return False
    return all(map(_fits, address.split("/"), pattern.split("/")))


def _fits(key: str, part: str) -> bool:
    return key == part if WILD.isdisjoint(part) else fnmatchcase(key, part)


def _under(node: Tree, part: str) -> list[Tree]:
    is_wild = not WILD.isdisjoint(part)
    if isinstance(node, dict) and part in node and not is_wild:
        return [node[part]]  # without a look at a hundred thousand other keys
    matches = re.compile(translate(part)).match if is_wild else part.__eq__
    return [child for key, child in children(node) if matches(str(key))]

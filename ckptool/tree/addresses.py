"""Key paths of a tree: their written form, and the node at one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ckptool.errors import AddressError
from ckptool.tree.describing import as_key, describe
from ckptool.tree.nodes import MAX_DIGITS, Address, Key, Opaque, Tree
from ckptool.tree.walking import LONG, children

# -------------------------------------------------------------------------------------- key paths

_ESCAPES = {"~": "~0", "/": "~1", "*": "~2"}


_UNESCAPES = {escaped: char for char, escaped in _ESCAPES.items()}


def format_address(address: Address) -> str:
    """Return ``("callbacks", "EMA", 0)`` as ``callbacks/EMA/0``, escaped as in JSON Pointer."""
    return "/".join(map(format_key, address))


def format_key(key: Key) -> str:
    """Return one key as it is written in a key path."""
    text = str(key)
    if "~" in text or "/" in text or "*" in text:  # few names of a hundred thousand
        return re.sub(r"[~/*]", lambda m: _ESCAPES[m.group()], text)
    return text


def parse_address(text: str) -> tuple[tuple[str, ...], bool]:
    """Return the keys of a key path as text, and whether the last is a prefix: it ends in ``*``."""
    is_prefix = text.endswith("*")
    keys = text.removesuffix("*").split("/") if text else []
    return tuple(re.sub("~[012]", lambda m: _UNESCAPES[m.group()], key) for key in keys), is_prefix


def resolve(tree: Tree, keys: tuple[str, ...]) -> tuple[Address, Tree]:
    """Return the node at ``keys``, and its key path with the keys of the tree, integers included.

    Raises:
        KeyError: a key is not there; the error names the first such key.
        AddressError: several keys are written so.
    """
    address: Address = ()
    for key in keys:
        name, tree = _step(tree, key)
        address = (*address, name)
    return address, tree


def node_at(tree: Tree, address: Address) -> Tree:
    """Return the node at a key path of :func:`walk`, in which ``1`` and ``"1"`` are two keys."""
    for node in nodes_on(tree, address):
        tree = node
    return tree


def nodes_on(tree: Tree, address: Address) -> Iterator[Tree]:
    """Yield the nodes along a key path of :func:`walk`, beginning under its first key."""
    for key in address:
        tree = _exactly(tree, key)
        yield tree


def _exactly(tree: Tree, key: Key) -> Tree:
    """Return the part under a key as ``children`` gives it."""
    if isinstance(tree, dict) and isinstance(key, str) and key in tree:
        return tree[key]
    if isinstance(tree, (list, tuple)) and isinstance(key, int):
        return tree[key]
    for name, part in children(tree):
        if name == key:
            return part
    raise AddressError(
        f"a key on the way to {str(key)!r:.80} is written like another one beside it",
        hint="save the file again with keys that differ as text",
    )


def _step(tree: Tree, key: str) -> tuple[Key, Tree]:
    """Return the part that is written ``key``, with its own key."""
    if isinstance(tree, (list, tuple)) and len(tree) <= LONG:  # most steps need no list of parts
        index = int(key) if key.isascii() and key.isdigit() and len(key) < MAX_DIGITS else -1
        if str(index) != key or not 0 <= index < len(tree):
            raise KeyError(key)
        return index, tree[index]
    found = _written(tree, key)
    if not found:
        raise KeyError(key)
    if len(found) > 1:
        raise AddressError(f"{_alike(tree, key)} are written alike, so {key!r:.80} is ambiguous")
    return found[0]


def _written(tree: Tree, key: str) -> list[tuple[Key, Tree]]:
    """Return the parts whose keys are written ``key``."""
    if isinstance(tree, dict) and len(tree) <= LONG:
        items = ((k if type(k) is str else as_key(k), part) for k, part in tree.items())
        return [(name, part) for name, part in items if str(name) == key]
    return [(name, part) for name, part in children(tree) if str(name) == key]


def _alike(tree: Tree, key: str) -> str:
    """Return the keys that are written ``key``, as they are pickled, for a message."""
    held = tree.items if isinstance(tree, Opaque) else tree
    keys = [k for k in held if str(as_key(k)) == key] if isinstance(held, dict) else []
    return f"the keys {' and '.join(map(describe, keys[:3]))}" if len(keys) > 1 else "several parts"


def refuse_ambiguous(tree: Tree, address: Address) -> None:
    """Refuse a key path of :func:`walk` that is written like another one: as 1 and ``"1"`` are.

    Raises:
        AddressError: a key on the path is written like another key beside it.
    """
    for depth, key in enumerate(address):
        found = _written(tree, str(key))
        if not found:  # a part that no key of the container names
            return
        if len(found) > 1:
            raise AddressError(
                f"{_alike(tree, str(key))} are written alike, so it is not clear which is meant",
                address=format_address(address[: depth + 1]),
                hint="save the file again with keys that differ as text",
            )
        tree = found[0][1]

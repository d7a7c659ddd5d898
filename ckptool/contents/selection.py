"""Written addresses: an operand ``PATH#ADDRESS``, and the node or the state dict at an address.

An address is a key path. It is ``a/b``, ``a/b/prefix.*`` for a part of a container, empty for the
top, or a role: ``@ema`` and ``@model`` stand for the state dicts that the search finds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ckptool.contents.completeness import unlisted
from ckptool.contents.finder import tensors_in
from ckptool.contents.inventory import Inventory, Leaf, Table, join_tables
from ckptool.contents.unplain import refuse_incomplete
from ckptool.errors import AddressError, UsageError
from ckptool.records import NamedTuple, replace
from ckptool.sources.places import as_path
from ckptool.sources.urls import is_url
from ckptool.tree.addresses import format_address, parse_address, resolve
from ckptool.tree.nodes import Address, CompositeTensor, Key, TensorRef, Tree
from ckptool.tree.walking import children

Value = TypeVar("Value")
SHOWN_KEYS = 12  # of a place, in a hint
EMA_ROLE, MODEL_ROLE = ROLES = "@ema", "@model"


class Operand(NamedTuple):
    """A path and an address as the user typed them."""

    path: Path
    address: str | None = None  # None: none was given; empty: the top


def parse_operand(text: str) -> Operand:
    """Parse ``PATH[#ADDRESS]`` or ``URL[#ADDRESS]``; an existing path is taken as a whole.

    Raises:
        UsageError: the text is empty, or a URL of a scheme that ckptool does not know.
    """
    if not text:  # as a path it would be the working directory
        raise UsageError(
            "an operand is empty; a variable in the command may not be set",
            hint="name a file; the working directory is .",
        )
    if is_url(text) and not os.path.lexists(text):
        url, mark, address = text.partition("#")
        return Operand(as_path(url), address if mark else None)
    cuts = [at for at, char in enumerate(text) if char == "#" and at]
    if os.path.lexists(text) or not cuts:
        return Operand(Path(text))
    cut = next((at for at in cuts if os.path.lexists(text[:at])), cuts[0])
    return Operand(Path(text[:cut]), text[cut + 1 :])


def select_table(inventory: Inventory, text: str) -> Table:
    """Return the state dict at a written address, ``a/b``, ``a/b/prefix.*`` or ``a/*/b``.

    Raises:
        AddressError: nothing there, or no tensors.
        UnsupportedError: nothing but numpy arrays or storages.
    """
    if "*" in text[:-1]:
        return _select_inside(inventory.tree, text)
    address, node, prefix = _place(inventory.tree, text)
    table = next((t for t in inventory.tables if t.node is node), None)
    table = table or join_tables(address, node, inventory.weights)
    if table is None:
        near = unlisted(node)
        refuse_incomplete(near, len(near))
        below = tensors_in(node)
        message = "no state dict itself, with tensors below it" if below else ""
        raise AddressError(
            message or "this place holds no tensors",
            address=text,
            hint=_places_hint(inventory, address),
        )
    if prefix is None:
        return replace(table, address=address)
    entries = _begun(table.entries, prefix, text)
    return replace(table, address=address, entries=entries, prefix=prefix, aliases=())


def select_node(tree: Tree, text: str) -> Tree:
    """Return the node at a written address.

    For ``a/prefix.*`` it is a dict of the keys that begin so. For ``a/*/b`` it is a dict of the
    tensors at ``b`` in each part of ``a``, by the part's key.

    Raises:
        AddressError: there is nothing.
    """
    if "*" in text[:-1]:
        return dict(_select_inside(tree, text).entries)
    _, node, prefix = _place(tree, text)
    if prefix is None:
        return node
    return _begun(_by_name(children(node), text), prefix, text)


def entries_at(entries: Mapping[str, Value], text: str) -> dict[str, Value]:
    """Return the entries of a list that lie at a written address, by the rest of their own.

    Raises:
        AddressError: there are none.
    """
    start = text.removesuffix("*") if text.endswith("*") or not text else f"{text}/"
    found = {at.removeprefix(start): entry for at, entry in entries.items() if at.startswith(start)}
    if not found:
        raise AddressError("the document lists no tensors there", address=text)
    return found


def _place(tree: Tree, text: str) -> tuple[Address, Tree, str | None]:
    """Return the address of a container, the container, and the prefix asked for in it."""
    keys, is_prefix = parse_address(text)
    is_prefix = is_prefix and bool(keys)
    address, node = _resolve(tree, keys[:-1] if is_prefix else keys, text)
    return address, node, keys[-1] if is_prefix else None


def _by_name(parts: list[tuple[Key, Tree]], text: str) -> dict[str, Tree]:
    """Return parts by the text of their keys."""
    named: dict[str, Tree] = {}
    for key, part in parts:
        if named.setdefault(str(key), part) is not part:
            raise AddressError(f"two keys there are written {str(key)!r:.80}", address=text)
    return named


def _begun(entries: Mapping[str, Value], prefix: str, text: str) -> dict[str, Value]:
    """Return the entries whose names begin with a prefix, without it."""
    found = {n.removeprefix(prefix): part for n, part in entries.items() if n.startswith(prefix)}
    if not found:
        raise AddressError(f"no name there begins with {prefix!r}", address=text)
    return found


def _select_inside(tree: Tree, text: str) -> Table:
    """Return the state dict at ``a/prefix*suffix/b``: a tensor in each part with such a name."""
    before, _, after = text.partition("*")
    container, _, prefix = before.rpartition("/")
    suffix, _, rest = after.partition("/")
    keys, inside = parse_address(container)[0], parse_address(rest)[0]
    start, end = "".join(parse_address(prefix)[0]), "".join(parse_address(suffix)[0])
    address, node = _resolve(tree, keys, text)
    entries: dict[str, Leaf] = {}
    for name, part in _by_name(children(node), text).items():
        if name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end):
            leaf = _leaf_at(part, inside)
            if leaf is not None:
                entries[name[len(start) : len(name) - len(end)]] = leaf
    if not entries:
        raise AddressError("no tensors there are called so", address=text)
    return Table(address, entries, node, prefix=start, suffix=end, inside=inside)


def _leaf_at(node: Tree, inside: tuple[str, ...]) -> Leaf | None:
    try:
        leaf = resolve(node, inside)[1]
    except KeyError:
        return None
    return leaf if isinstance(leaf, (TensorRef, CompositeTensor)) else None


def _resolve(tree: Tree, keys: tuple[str, ...], text: str) -> tuple[Address, Tree]:
    """Resolve keys as ``tree.addresses.resolve`` does; ``text`` is what the user typed.

    Raises:
        AddressError: nothing there; its hint has the name that is most like the missing one. Or
            two keys are written alike.
    """
    try:
        return resolve(tree, keys)
    except AddressError as error:
        error.address = text
        raise
    except KeyError as error:
        missing = error.args[0]
    message = f"no such place: there is no {missing!r}"
    raise AddressError(message, address=text, hint=_nearly(tree, keys, text))


def _nearly(tree: Tree, keys: tuple[str, ...], text: str) -> str | None:
    from difflib import get_close_matches  # noqa: PLC0415 - only when something was mistyped

    if text.startswith("@"):
        return f"the roles are {EMA_ROLE} and {MODEL_ROLE}; other addresses begin with a key"
    address: Address = ()
    for key in keys:
        try:
            (name,), inside = resolve(tree, (key,))
        except KeyError:
            from ckptool.contents.globs import typable  # noqa: PLC0415 - only when mistyped

            names = typable(str(name) for name, _ in children(tree))
            close = get_close_matches(key, names, n=1)
            if close:
                return f"did you mean {format_address((*address, *close))}?"
            return _keys_hint(address, names)
        address, tree = (*address, name), inside
    return None


def _keys_hint(address: Address, names: Sequence[str]) -> str:
    """Return the keys that there are instead of a missing one."""
    at = format_address(address) or "the root"
    more = ", …" if len(names) > SHOWN_KEYS else ""
    return f"the keys of {at}: {', '.join(names[:SHOWN_KEYS])}{more}" if names else f"{at} is empty"


def _places_hint(inventory: Inventory, address: Address) -> str:
    inside = [t for t in inventory.tables if t.address[: len(address)] == address]
    listed = inside or list(inventory.weights)
    places = ", ".join(format_address(t.address) or "(root)" for t in listed[:5])
    return f"tensors are at: {places}" if places else "the file holds no tensors"

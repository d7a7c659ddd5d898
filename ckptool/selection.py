"""What somebody typed: an operand ``PATH#ADDRESS``, and the table at an address.

An address is ``a/b``, ``a/b/prefix.*`` for a part of one, nothing at all for the top, or a role:
``@ema`` and ``@model`` stand for what the locator finds.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ckptool.errors import AddressError
from ckptool.inventory import Inventory, Table, join_tables
from ckptool.tree import Address, Tree, children, format_address, parse_address, resolve

EMA_ROLE, MODEL_ROLE = "@ema", "@model"
MAX_NAMES = 10_000  # that a mistyped one is compared with,
MAX_LENGTH = 200  # of so many characters


class Operand(NamedTuple):
    """A place that somebody typed."""

    path: Path
    address: str | None = None  # None: none was given; empty: the top


def parse_operand(text: str) -> Operand:
    """``PATH[#ADDRESS]``; what exists as it stands is a path."""
    cuts = [at for at, char in enumerate(text) if char == "#"]
    if os.path.lexists(text) or not cuts:
        return Operand(Path(text))
    cut = next((at for at in cuts if os.path.lexists(text[:at])), cuts[0])
    return Operand(Path(text[:cut]), text[cut + 1 :])


def select_table(inventory: Inventory, text: str) -> Table:
    """The table at a written address, ``a/b`` or ``a/b/prefix.*``.

    Raises:
        AddressError: nothing there, or no tensors.
    """
    keys, is_prefix = parse_address(text)
    container, prefix = (keys[:-1], keys[-1]) if is_prefix else (keys, "")
    address, node = resolve_place(inventory.tree, container, text)
    table = next((t for t in inventory.tables if t.node is node), None)
    table = table or join_tables(address, node, inventory.weights)
    if table is None:
        raise AddressError(
            "this place holds no tensors", address=text, hint=_places_hint(inventory, address)
        )
    if not is_prefix:
        return replace(table, address=address)
    entries = {n[len(prefix) :]: ref for n, ref in table.entries.items() if n.startswith(prefix)}
    if not entries:
        raise AddressError(f"no name there begins with {prefix!r}", address=text)
    return replace(table, address=address, entries=entries, prefix=prefix, aliases=())


def resolve_place(tree: Tree, keys: tuple[str, ...], text: str) -> tuple[Address, Tree]:
    """As :func:`~ckptool.tree.resolve`, for an address that somebody typed as ``text``.

    Raises:
        AddressError: nothing there; its hint names what is called nearly so.
    """
    try:
        return resolve(tree, keys)
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
            names = [str(name) for name, _ in children(tree)[:MAX_NAMES]]
            close = get_close_matches(key, [n for n in names if len(n) <= MAX_LENGTH], n=1)
            return f"did you mean {format_address((*address, *close))}?" if close else None
        address, tree = (*address, name), inside
    return None


def _places_hint(inventory: Inventory, address: Address) -> str:
    inside = [t for t in inventory.tables if t.address[: len(address)] == address]
    listed = inside or list(inventory.weights)
    places = ", ".join(format_address(t.address) or "(the top)" for t in listed[:5])
    return f"tensors are at: {places}" if places else "the file holds no tensors"

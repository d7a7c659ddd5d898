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
from ckptool.tree import Address, format_address, parse_address, resolve

EMA_ROLE, MODEL_ROLE = "@ema", "@model"


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
    try:
        address, node = resolve(inventory.tree, container)
    except KeyError as error:
        raise AddressError(f"no such place: there is no {error.args[0]!r}", address=text) from None
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


def _places_hint(inventory: Inventory, address: Address) -> str:
    inside = [t for t in inventory.tables if t.address[: len(address)] == address]
    listed = inside or list(inventory.weights)
    places = ", ".join(format_address(t.address) or "(the top)" for t in listed[:5])
    return f"tensors are at: {places}" if places else "the file holds no tensors"

"""Where in a tree the tensors sit: tables of named tensors, optimizers, ordered lists.

A **table** is a container with tensors directly under its keys: a state dict, a pickled module, a
list of weights. What commands ask of a tree (totals, sections, candidates for EMA) they ask of its
tables, which are few, instead of its tensors, which may be 100,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from ckptool.tree import Address, CompositeTensor, Key, Opaque, TensorRef, Tree, children, walk

MAX_ALIASES = 16
Leaf = TensorRef | CompositeTensor


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Named tensors in one container."""

    address: Address
    entries: Mapping[str, Leaf]  # by name, in the file's order
    node: Tree
    prefix: str = ""  # stripped from the names: the table is the part of the container under it
    aliases: tuple[Address, ...] = ()  # other addresses of the same container
    is_list: bool = False  # names are positions

    @property
    def tensors(self) -> dict[str, TensorRef]:
        """The entries that are one dense tensor each."""
        return {name: ref for name, ref in self.entries.items() if isinstance(ref, TensorRef)}


@dataclass(frozen=True)
class Inventory:
    """Every table of a tree, and which of them belong to optimizers."""

    tree: Tree
    tables: tuple[Table, ...]
    optimizers: Mapping[Address, Tree]  # with their nodes
    aliases: Mapping[Address, tuple[Address, ...]]  # first address of a container -> the others

    @cached_property
    def weights(self) -> tuple[Table, ...]:
        """The tables outside optimizers: what could be model weights or averages of them."""
        inside, depths = self.optimizers, {len(at) for at in self.optimizers}
        return tuple(
            t for t in self.tables if not any(t.address[:depth] in inside for depth in depths)
        )

    @cached_property
    def leaves(self) -> list[TensorRef]:
        """Every dense tensor once, in the file's order."""
        return [
            leaf
            for table in self.tables
            for leaf in table.entries.values()
            if isinstance(leaf, TensorRef)
        ]


def take_inventory(tree: Tree) -> Inventory:
    """The tables of ``tree``; a bare tensor at the top is a table of one, without a name."""
    aliases: dict[Address, list[Address]] = {}
    found: list[tuple[Address, Tree, dict[str, Leaf]]] = []
    optimizers: dict[Address, Tree] = {}
    if isinstance(tree, TensorRef):
        found.append(((), tree, {"": tree}))
    for visit in walk(tree):
        if visit.alias_of is not None:
            aliases.setdefault(visit.alias_of, []).append(visit.address)
            continue
        if is_optimizer(visit.node):
            optimizers[visit.address] = visit.node
        if entries := _tensor_entries(visit.children):
            found.append((visit.address, visit.node, entries))
    others = {first: tuple(rest) for first, rest in aliases.items()}
    tables = tuple(
        Table(
            address=address,
            entries=entries,
            node=node,
            aliases=_aliases_of(address, others),
            is_list=isinstance(node, (list, tuple)),
        )
        for address, node, entries in found
    )
    return Inventory(tree, tables, optimizers, others)


def join_tables(address: Address, node: Tree, tables: Sequence[Table]) -> Table | None:
    """The tables directly in one container as one, when no two use the same name; else None.

    Composer keeps averaged parameters and averaged buffers so, side by side.
    """
    parts = [t for t in tables if t.address[:-1] == address and not t.is_list and not t.prefix]
    entries = {name: ref for part in parts for name, ref in part.entries.items()}
    if len(parts) < 2 or len(entries) != sum(len(part.entries) for part in parts):
        return None
    return Table(address, entries, node)


def is_optimizer(node: Tree) -> bool:
    """Whether a node is an optimizer, pickled or its state dict: it has both these parts."""
    fields = node.attributes if isinstance(node, Opaque) and node.state else node
    return isinstance(fields, dict) and "param_groups" in fields and "state" in fields


def is_state_dict(node: Tree) -> bool:
    """Whether a node is mostly tensors: weights, not a training state with a loose tensor in it."""
    parts = children(node)
    loose = sum(isinstance(child, TensorRef) for _, child in parts)
    return isinstance(node, TensorRef) or loose * 2 > len(parts)


def _tensor_entries(parts: list[tuple[Key, Tree]]) -> dict[str, Leaf]:
    return {
        str(key): child for key, child in parts if isinstance(child, (TensorRef, CompositeTensor))
    }


def _aliases_of(
    address: Address, aliases: Mapping[Address, tuple[Address, ...]]
) -> tuple[Address, ...]:
    """Other addresses of a table: its container's, or those of a container around it.

    The first of them: where containers hold each other in circles they are without end.
    """
    found = (
        (*other, *address[depth:])
        for depth in range(1, len(address) + 1)
        for other in aliases.get(address[:depth], ())
    )
    return tuple(islice(found, MAX_ALIASES))


def scalars_in(node: Tree) -> dict[str, Any]:
    """The plain values directly under a node; tensors of one element count as numbers."""
    fields = node.attributes if isinstance(node, Opaque) else node
    if not isinstance(fields, dict):
        return {}
    return {
        str(key): value
        for key, value in fields.items()
        if (
            value.shape == () or value.numel == 1
            if isinstance(value, TensorRef)
            else _is_plain(value)
        )
    }


def _is_plain(value: Tree) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))

"""Inventory of the tensors in a tree: tables of named tensors, optimizers, ordered lists.

A **table** is a container with tensors directly under its keys: a state dict, a pickled module or a
list of weights. Commands compute totals, sections and candidates for EMA from the tables, which are
few, instead of from the tensors, of which there may be 100,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from math import prod
from operator import itemgetter
from typing import Any

from ckptool.records import field, record
from ckptool.tree.nodes import (
    TENSORS,
    Address,
    CompositeTensor,
    Key,
    TensorRef,
    Tree,
    fields_of,
    is_plain,
)
from ckptool.tree.walking import children, walk

MAX_ALIASES = 16
Leaf = TensorRef | CompositeTensor

# Bytes (and for MT19937 words) of the states of random generators.
CPU_BYTES = 5056  # of torch.get_rng_state()
DEVICE_BYTES = frozenset({16, 44, 816016, 824016})  # CUDA, MPS, CUDA before torch 1.6
MT19937_WORDS = 624


@record(slots=True, eq=False)
class Table:
    """Named tensors in one container."""

    address: Address
    entries: Mapping[str, Leaf]  # by name, in the file's order
    node: Tree
    prefix: str = ""  # stripped from the names: the table is the part of the container under it
    aliases: tuple[Address, ...] = ()  # other addresses of the same container
    is_list: bool = False  # names are positions
    suffix: str = ""  # stripped from the names too: that of one track of several in the container
    inside: Address = ()  # key path of each tensor in the part of the container that names it

    def key_of(self, name: str) -> str:
        """Return the container's key for one of the names."""
        return self.prefix + name + self.suffix

    @property
    def tensors(self) -> dict[str, TensorRef]:
        """The entries that are one dense tensor each."""
        return {name: ref for name, ref in self.entries.items() if isinstance(ref, TensorRef)}


@record
class Inventory:
    """Every table of a tree, with the optimizers that some of them belong to."""

    tree: Tree
    tables: tuple[Table, ...]
    optimizers: Mapping[Address, Tree]  # with their nodes
    aliases: Mapping[Address, tuple[Address, ...]]  # first address of a container -> the others
    composites: Mapping[Address, CompositeTensor] = field(default_factory=dict)  # by first address

    @cached_property
    def weights(self) -> tuple[Table, ...]:
        """The tables of whole tensors outside optimizers: model weights or EMA weights."""
        parts = {id(table) for table in self.parts}
        return tuple(t for t in self._outside if id(t) not in parts)

    @cached_property
    def parts(self) -> tuple[Table, ...]:
        """The tables outside optimizers that are parts of one tensor: its indices, its scale."""
        return tuple(_within(self._outside, self.composites))

    @cached_property
    def _outside(self) -> tuple[Table, ...]:
        inside = {id(table) for table in _within(self.tables, self.optimizers)}
        return tuple(t for t in self.tables if id(t) not in inside)

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
    """Return the tables of ``tree``; a bare tensor at the top is a table of one, without a name."""
    aliases: dict[Address, list[Address]] = {}
    found: list[tuple[Address, Tree, dict[str, Leaf]]] = []
    optimizers: dict[Address, Tree] = {}
    composites: dict[Address, CompositeTensor] = {}
    if isinstance(tree, TensorRef):
        found.append(((), tree, {"": tree}))
    pairs: set[int] = set()  # identities of the pairs in a list of (name, tensor)
    for visit in walk(tree):
        if visit.alias_of is not None:
            aliases.setdefault(visit.alias_of, []).append(visit.address)
            continue
        if pairs and id(visit.node) in pairs:
            continue
        if isinstance(visit.node, (list, tuple)) and (named := named_pairs(visit.node)):
            pairs.update(id(pair) for _, pair in visit.children)
            found.append((visit.address, visit.node, named))
            continue
        if is_optimizer(visit.node):
            optimizers[visit.address] = visit.node
        if isinstance(visit.node, CompositeTensor):
            composites[visit.address] = visit.node
        if entries := _tensor_entries(visit.children):
            found.append((visit.address, visit.node, entries))
    others = {first: tuple(rest) for first, rest in aliases.items()}
    # By position, all of them: an optimizer has a table for each of 100,000 parameters.
    tables = tuple(
        Table(at, entries, node, "", _aliases_of(at, others), _is_list(node), "", ())
        for at, node, entries in found
    )
    return Inventory(tree, tables, optimizers, others, composites)


def _is_list(node: Tree) -> bool:
    return isinstance(node, (list, tuple)) and not named_pairs(node)


def named_pairs(node: Tree) -> dict[str, Leaf]:
    """Return the tensors in a list of (name, tensor), by name; empty for any other node.

    ``list(model.named_parameters())`` is such a list.
    """
    named: dict[str, Leaf] = {}
    for pair in node if isinstance(node, (list, tuple)) else ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            return {}
        name, leaf = pair
        is_named = isinstance(name, str) and isinstance(leaf, (TensorRef, CompositeTensor))
        if not is_named or name in named:
            return {}
        named[name] = leaf
    return named


def _within(tables: Sequence[Table], places: Mapping[Address, Tree]) -> Iterator[Table]:
    """Yield the tables at or below one of the addresses."""
    depths = {len(at) for at in places}
    return (t for t in tables if any(t.address[:depth] in places for depth in depths))


def join_tables(address: Address, node: Tree, tables: Sequence[Table]) -> Table | None:
    """Return two or more tables of one container as one; None if two use the same name.

    Composer keeps EMA parameters and EMA buffers so, side by side.
    """
    parts = [t for t in tables if t.address[:-1] == address and not t.is_list and not t.prefix]
    entries = {name: ref for part in parts for name, ref in part.entries.items()}
    if len(parts) < 2 or len(entries) != sum(len(part.entries) for part in parts):
        return None
    return Table(address, entries, node)


def is_optimizer(node: Tree) -> bool:
    """Return whether a node has the parts of an optimizer, pickled or as its state dict."""
    if isinstance(node, TensorRef):  # as 100,000 are
        return False
    fields = node if type(node) is dict else fields_of(node)
    return ("param_groups" in fields and "state" in fields) or is_flat_optimizer(fields)


FLAT_STATE, FLAT_GROUPS = "state.", "param_groups."


def is_flat_optimizer(fields: dict[Any, Any]) -> bool:
    """Return whether keys are joined as ``flatten_optimizer_state_dict`` of torch does it.

    They are ``state.<name>.exp_avg`` and ``param_groups.<name>.lr``.
    """
    first = next(iter(fields), None)
    if not isinstance(first, str) or not first.startswith((FLAT_STATE, FLAT_GROUPS)):
        return False
    kinds = {key.partition(".")[0] for key in fields if isinstance(key, str) and "." in key}
    return kinds == {"state", "param_groups"}


def is_row_of_bytes(node: Tree) -> bool:
    """Return whether a node is a ByteTensor of one dimension, the form of torch's random states."""
    return isinstance(node, TensorRef) and node.dtype.name == "uint8" and len(node.shape) == 1


def is_state_dict(node: Tree) -> bool:
    """Return whether a node is mostly tensors, not a training state with a loose tensor."""
    kinds = list(map(type, map(_SECOND, children(node))))
    loose = sum(map(kinds.count, TENSORS))
    return isinstance(node, TensorRef) or loose * 2 > len(kinds)


_FIRST, _SECOND = itemgetter(0), itemgetter(1)
_TEXTS, _LEAVES = frozenset({str}), frozenset(TENSORS)


def _tensor_entries(parts: list[tuple[Key, Tree]]) -> dict[str, Leaf]:
    kinds = set(map(type, map(_SECOND, parts)))
    if kinds <= _LEAVES and _TEXTS.issuperset(map(type, map(_FIRST, parts))):
        return dict(parts)  # type: ignore[arg-type] # a state dict; some have 100,000 tensors
    return {
        str(key): child for key, child in parts if isinstance(child, (TensorRef, CompositeTensor))
    }


def _aliases_of(
    address: Address, aliases: Mapping[Address, tuple[Address, ...]]
) -> tuple[Address, ...]:
    """Return other addresses of a table, by those of its container or of a container around it.

    Return only the first ``MAX_ALIASES``: containers that hold each other have no end of them.
    """
    if not aliases:
        return ()
    found = (
        (*other, *address[depth:])
        for depth in range(1, len(address) + 1)
        for other in aliases.get(address[:depth], ())
    )
    return tuple(islice(found, MAX_ALIASES))


def scalars_in(node: Tree, *, tensors: bool = True) -> dict[str, Any]:
    """Return the plain values directly under a node; tensors of one element count as numbers.

    Without ``tensors`` they do not.
    """
    return {
        str(key): value
        for key, value in fields_of(node).items()
        if (
            tensors and prod(value.shape) == 1
            if isinstance(value, TensorRef)
            else is_plain(value) and not isinstance(value, complex)
        )
    }

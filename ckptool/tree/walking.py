"""Walks over a tree: its nodes with their key paths, each container once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from operator import itemgetter
from typing import Any

from ckptool.errors import DamagedError
from ckptool.records import NamedTuple
from ckptool.tree.describing import as_key
from ckptool.tree.nodes import (
    CONTAINERS,
    MAX_DEPTH,
    PLAIN,
    TENSORS,
    Address,
    CompositeTensor,
    Key,
    Opaque,
    TensorRef,
    Tree,
    is_container,
)


class Visit(NamedTuple):
    """A container that :func:`walk` reached, with its named parts."""

    address: Address
    node: Tree
    children: list[tuple[Key, Tree]]
    alias_of: Address | None = None  # the first key path of a container that was reached before


# ---------------------------------------------------------------------------------------- walking


def children(node: Tree) -> list[tuple[Key, Tree]]:
    """Return the named parts of a node, in the file's order; empty for a leaf.

    A long container of plain values alone counts as a leaf: users never ask for one of its millions
    of numbers, and their key paths would take far more memory than the numbers.

    Raises:
        DamagedError: there are more parts than fit into memory.
    """
    if isinstance(node, dict):
        if len(node) > LONG and _is_leaf(node.values()):
            return []
        return _keyed(node)
    if isinstance(node, (list, tuple)):
        return [] if len(node) > LONG and _is_leaf(node) else list(enumerate(node))
    if isinstance(node, Opaque):
        return _children_of_object(node)
    if isinstance(node, CompositeTensor):
        wrapper = node.wrapper
        return list(node.parts.items()) if wrapper is None else _children_of_object(wrapper)
    return []


_TEXTS = frozenset({str})


def _is_leaf(values: Collection[Tree]) -> bool:
    """Return whether the many values of a container are all plain."""
    kinds = set(map(type, values))
    if kinds <= PLAIN:
        return True
    if len(values) > (MAX_PARTS if kinds.isdisjoint(SETS) else MAX_CONTAINERS):
        raise DamagedError(f"a container of {len(values)} values of all kinds")
    return False


def _children_of_object(node: Opaque) -> list[tuple[Key, Tree]]:
    if node.is_module:
        from ckptool.tree.modules import module_state_dict  # noqa: PLC0415 - few files hold any

        return list(module_state_dict(node).items())
    items = _keyed(node.items or {})  # two of them may be written alike, as 1 and "1" are
    taken = {key for key, _ in items}
    attributes = node.attributes if node.state is not None else {}
    more: dict[Key, Tree] = dict(enumerate(node.elements or ()))
    for i, arg in enumerate(node.args):
        if isinstance(arg, _DEEP) and arg != ():
            more["args" if i == 0 else f"args{i}"] = arg
    named = [*items, *((key, part) for key, part in _keyed(attributes) if key not in taken)]
    if not attributes and is_container(node.state) and "state" not in taken:
        more.setdefault("state", node.state)
    return [*((key, part) for key, part in named if key not in more), *more.items()]


def _keyed(table: dict[Any, Tree]) -> list[tuple[Key, Tree]]:
    if _TEXTS.issuperset(map(type, table)):  # nearly all, and some have 100,000 keys
        return list(table.items())
    return [(key if type(key) is str else as_key(key), part) for key, part in table.items()]


LONG = 1 << 17  # values in a container

SETS = frozenset({set, frozenset})  # leaves, since their elements have no keys


MAX_PARTS = 1 << 23  # values with key paths, in all containers together


MAX_CONTAINERS = 1 << 20  # the optimizer's state of 100,000 tensors is 100,000 dicts


MAX_ADDRESS_PARTS = 50_000_000  # keys in all key paths together


def walk(tree: Tree, at: Address = ()) -> Iterator[Visit]:
    """Yield each container, parents first, in the file's order; leaves are among the children.

    A container that is reached again has its first key path in ``alias_of``, and is not entered.

    Raises:
        DamagedError: the tree is nested deeper than ``MAX_DEPTH``, or too large for the memory.
    """
    seen: dict[int, Address] = {}
    parts = named = 0
    stack: list[Iterator[tuple[Address, Tree]]] = [iter([(at, tree)] if is_container(tree) else [])]
    while stack:
        for address, node in stack[-1]:
            first = seen.setdefault(id(node), address)
            kids = children(node)
            named += len(kids)
            parts += len(address) * len(kids)
            if parts > MAX_ADDRESS_PARTS or named > MAX_PARTS or len(seen) > MAX_CONTAINERS:
                raise DamagedError("too many values to give them all addresses")
            yield Visit(address, node, kids, None if first is address else first)
            if first is address and _have_parts(kids):
                if len(address) == MAX_DEPTH:
                    raise DamagedError(f"nested deeper than {MAX_DEPTH} levels")
                stack.append(_inside(address, kids))
                break
        else:
            stack.pop()


_SECOND = itemgetter(1)
_FLAT = PLAIN | {TensorRef}  # kinds of most children: they have no parts


def _have_parts(kids: list[tuple[Key, Tree]]) -> bool:
    is_flat = _FLAT.issuperset(map(type, map(_SECOND, kids)))
    return not is_flat and any(isinstance(child, CONTAINERS) for _, child in kids)


def _inside(address: Address, kids: list[tuple[Key, Tree]]) -> Iterator[tuple[Address, Tree]]:
    return (((*address, key), child) for key, child in kids if is_container(child))


def tensors(tree: Tree) -> Iterator[tuple[Address, TensorRef]]:
    """Return each tensor under ``tree`` with its key path; composite tensors part by part."""
    return _leaves_of(tree, TensorRef)


def whole_tensors(tree: Tree) -> Iterator[tuple[Address, TensorRef | CompositeTensor]]:
    """Return what :func:`tensors` returns, and each composite tensor before its parts."""
    return _leaves_of(tree, TENSORS)


def _leaves_of(tree: Tree, kinds: type | tuple[type, ...]) -> Iterator[tuple[Address, Any]]:
    if isinstance(tree, kinds):
        yield (), tree
    for visit in walk(tree):
        if visit.alias_of is None:
            for key, child in visit.children:
                if isinstance(child, kinds):
                    yield (*visit.address, key), child


def leaves(tree: Tree) -> Iterator[TensorRef]:
    """Yield the tensors under ``tree`` without key paths, once for each entry of a container."""
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, TensorRef):
            yield node
        elif isinstance(node, CONTAINERS) and id(node) not in seen:
            seen.add(id(node))
            if len(seen) > MAX_CONTAINERS:
                raise DamagedError("too many values to count them all")
            kids = _values(node)
            if _TENSORS_ALONE.issuperset(kinds := set(map(type, kids))):
                yield from kids
            elif kinds <= _FLAT:
                yield from (child for child in kids if type(child) is TensorRef)
            else:
                waiting += [child for child in kids if isinstance(child, _DEEP)]


def _values(node: Tree) -> list[Tree]:
    """Return the parts of a node without their names: an optimizer has 100,000 small dicts."""
    if type(node) is dict and len(node) <= LONG:
        return list(node.values())
    return list(map(_SECOND, children(node)))


_DEEP = (*CONTAINERS, TensorRef)
_TENSORS_ALONE = frozenset({TensorRef})

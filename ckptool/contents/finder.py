"""The search for tensors in everything that a container holds besides its state dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ckptool.contents.inventory import (
    CPU_BYTES,
    DEVICE_BYTES,
    MT19937_WORDS,
    is_optimizer,
    is_row_of_bytes,
)
from ckptool.errors import DamagedError
from ckptool.names import says, whole
from ckptool.tree.nodes import (
    PLAIN,
    ArrayRef,
    CompositeTensor,
    NotedDict,
    NotedList,
    Opaque,
    StorageRef,
    TensorRef,
    Tree,
)
from ckptool.tree.walking import LONG, MAX_PARTS

# Keys of random states. A key alone puts no tensors aside: their form must match it.
_RANDOM = whole("rng", "random_state", "rand_state", "randstate", "generator", "seed")
# Lengths that no layer has by chance.
_STATE_BYTES = frozenset(size for size in (CPU_BYTES, *DEVICE_BYTES) if size >= CPU_BYTES)
_MT19937 = "u4", (MT19937_WORDS,)  # dtype and shape of the words in numpy's state


class Finder:
    """A limited search for tensors in nodes: a hostile file holds one list in a million places.

    Raises:
        DamagedError: in its methods, when all searches together have gone through too much.
    """

    def __init__(self) -> None:
        self._room = MAX_PARTS  # parts that may still be looked at

    def spend(self, parts: int) -> None:
        """Count parts that are looked at."""
        self._room -= parts
        if self._room < 0:
            raise DamagedError("its containers are shared so often that they unfold without end")

    def tensors_in(self, node: Tree) -> list[Any]:
        """Return everything like a tensor under a node, also in sets, keys and attributes."""
        return list(self.search(node))

    def search(self, node: Tree, passed: Callable[[Tree], bool] | None = None) -> Iterator[Any]:
        """Yield everything like a tensor under a node, but not under nodes that are ``passed``."""
        seen: set[int] = set()
        waiting: list[Any] = [node]
        while waiting:
            part = waiting.pop()
            if passed is not None and passed(part):
                continue
            is_array = isinstance(part, ArrayRef) and part.objects is None
            if is_array or isinstance(part, (TensorRef, CompositeTensor, StorageRef)):
                yield part
            elif isinstance(part, _HOLDERS) and id(part) not in seen:
                seen.add(id(part))
                inside = list(_inside(part))
                self.spend(len(inside))
                waiting += [inner for inner in inside if isinstance(inner, _DEEP)]


def tensors_in(node: Tree) -> list[Any]:
    """Return everything like a tensor under one node; see :class:`Finder`."""
    return Finder().tensors_in(node)


_HOLDERS = (dict, list, tuple, set, frozenset, Opaque, ArrayRef)
_DEEP = (*_HOLDERS, TensorRef, CompositeTensor, StorageRef)


def _inside(part: Any) -> Iterator[Any]:
    if isinstance(part, Opaque):
        yield from part.args
        yield from (part.kwargs, part.state, part.items, part.elements)
    elif isinstance(part, ArrayRef):
        yield part.objects
    elif len(part) <= LONG or not set(map(type, part)) <= PLAIN or isinstance(part, dict):
        yield from part
        yield from part.values() if isinstance(part, dict) else ()
    if isinstance(part, (NotedDict, NotedList)):
        yield from (part.state, dict(part.made_with))


def is_aside(name: str, node: Tree, finder: Finder) -> bool:
    """Return whether every tensor under a node is an optimizer's or a random generator's.

    Their form decides, since a model may have layers called ``optim_head`` or ``rng_embed``.
    """
    is_named = says(name, _RANDOM)

    def passed(part: Tree) -> bool:
        return is_optimizer(part) or is_random_state(part, is_named=is_named)

    return next(finder.search(node, passed), None) is None


def is_random_state(node: Tree, *, is_named: bool = False) -> bool:
    """Return whether a node has the form of a random generator's state.

    Args:
        node: a tensor or an array.
        is_named: its key says so; then a row of bytes of any length is one.
    """
    if isinstance(node, TensorRef):
        return is_row_of_bytes(node) and (is_named or node.shape[0] in _STATE_BYTES)
    return isinstance(node, ArrayRef) and (node.dtype.lstrip("<>=|"), node.shape) == _MT19937

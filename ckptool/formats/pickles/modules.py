"""torch's modules as objects of a pickle: an ``nn.Module`` by the attributes that it looks in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptool.tree.nodes import Opaque

# The attributes in which torch's modules look for others: they hold any object and any hook.
LOOKED_IN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
OF_ANY_MODULE = LOOKED_IN - {"_non_persistent_buffers_set"}  # which is there since torch 1.6


def is_module(key: Any) -> bool:
    """Return whether an object is a module by its attributes, and by nothing else."""
    state = key.state if isinstance(key, Opaque) and not key.args else None
    return isinstance(state, dict) and all(name in state for name in OF_ANY_MODULE)


def modules_below(state: Any) -> Iterator[Any]:
    """Yield each value that is a submodule, at any depth, of a module with this state."""
    waiting, seen = [state], set[int]()
    while waiting:
        inside = waiting.pop()
        named = inside.get("_modules") if isinstance(inside, dict) else None
        for part in named.values() if isinstance(named, dict) else ():
            if part is not None and id(part) not in seen:
                seen.add(id(part))
                yield part
                waiting.append(part.attributes if isinstance(part, Opaque) else None)

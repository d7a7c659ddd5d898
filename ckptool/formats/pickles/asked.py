"""Names of attributes for which pickle, Python, numpy and torch ask an object.

A pickle that sets such an attribute decides what they find: a function there is called.
"""

from __future__ import annotations

from typing import Any

# Methods by which pickle itself fills any object.
_BY_PICKLE = frozenset({"append", "extend", "add"})
# Attributes by which Python's functions, numpy's and torch's read their arguments.
_BY_READERS = frozenset(
    name
    for kind in (dict, list, set, str, bytes, int, float, complex, slice, range)
    for name in dir(kind)
) | frozenset({
    "_get_args", "_get_kwargs", "add_", "appendleft", "as_subclass", "clone", "cpu", "cuda",
    "default_factory", "detach", "detach_", "device", "dtype", "elements", "extendleft",
    "is_leaf", "move_to_end", "new", "numpy", "requires_grad_", "set_", "shape", "size", "storage",
    "stride", "to", "type", "untyped_storage", "_untyped_storage", "view",
})  # fmt: skip


def is_special(name: Any) -> bool:
    """Return whether a name is in two underscores on both sides, as those that Python asks for."""
    return isinstance(name, str) and len(name) > 4 and name[:2] == name[-2:] == "__"


def is_asked(name: str) -> bool:
    """Return whether Python, numpy or torch asks an object for a name while they read it."""
    return name in _BY_READERS or is_special(name)


def is_asked_of_all(name: str) -> bool:
    """Return whether pickle or Python asks any object for a name; pydantic has its own such."""
    return name in _BY_PICKLE or (is_special(name) and not name.startswith("__pydantic_"))

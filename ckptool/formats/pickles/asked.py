"""Names of attributes for which pickle, Python, numpy and torch ask an object.

A pickle that sets such an attribute decides what they find: a function there is called.
"""

from __future__ import annotations

from typing import Any

from ckptool.formats.pickles.dropped import CALLED, ENDING

# Methods by which pickle itself fills any object.
BY_PICKLE = frozenset({"append", "extend", "add"})
# Attributes by which Python's functions, numpy's and torch's read their arguments.
_BY_READERS = frozenset(
    name
    for kind in (dict, list, set, str, bytes, int, float, complex, slice, range)
    for name in dir(kind)
) | frozenset({
    "_get_args", "_get_kwargs", "_is_locked", "add_", "appendleft", "as_subclass",
    "characters_written", "clone", "cpu", "cuda", "default_factory", "detach", "detach_", "device",
    "dtype", "elements", "extendleft", "is_leaf", "lock_", "move_to_end", "new", "numpy",
    "requires_grad_", "set_", "shape", "size", "storage", "stride", "to", "type", "untyped_storage",
    "_untyped_storage", "view",
})  # fmt: skip

# Methods that a ``__setstate__`` of torch's calls on the object that it has just filled.
BY_STATES = frozenset({
    "_build_debug_param_to_name_mapping", "_build_params_for_reducer", "_convert_mask",
    "_ddp_init_helper", "_load_container_from_state", "_patch_step_function", "_post_init",
    "set_weight_bias", "set_",
})  # fmt: skip

# Methods of a module that list what it holds.
_LISTS = frozenset({
    "_named_members", "buffers", "children", "modules", "named_buffers", "named_children",
    "named_modules", "named_parameters", "parameters",
})  # fmt: skip


def is_special(name: Any) -> bool:
    """Return whether a name is in two underscores on both sides, as those that Python asks for."""
    return isinstance(name, str) and len(name) > 4 and name[:2] == name[-2:] == "__"


def is_asked_of_classes(name: Any) -> bool:
    """Return whether pickle or Python asks a class for a name, of which no object is made."""
    return name in BY_PICKLE or is_special(name)


def is_asked(name: str) -> bool:
    """Return whether Python, numpy or torch asks an object for a name while they read it."""
    return name in _BY_READERS or is_asked_by_states(name)


def is_asked_by_states(name: Any) -> bool:
    """Return whether Python or a class of torch's asks an object that it fills or drops."""
    return name in BY_STATES or name in CALLED or name in ENDING or is_special(name)


def is_asked_of_all(name: str) -> bool:
    """Return whether pickle or Python asks any object for a name; pydantic has its own such."""
    is_pydantic = name.startswith("__pydantic_")
    return name in BY_PICKLE or (is_asked_by_states(name) and not is_pydantic)


def is_asked_of_modules(name: str) -> bool:
    """Return whether torch asks a module for a name while it lists what is in the module."""
    return name in _LISTS or is_asked_by_states(name)

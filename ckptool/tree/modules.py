"""The state dict of a pickled module, as ``Module.state_dict()`` would return it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptool.errors import DamagedError
from ckptool.records import NamedTuple
from ckptool.tree.nodes import MAX_DEPTH, PLAIN, TENSORS, CompositeTensor, Opaque, TensorRef

NOT_PERSISTENT = "_non_persistent_buffers_set"  # attribute with names that are not saved
MAX_STATE_DICT = 10_000_000  # names; modules that share modules can unfold without end


class Entry(NamedTuple):
    """A tensor of a module's state dict, and its place in the pickled object."""

    name: str
    value: TensorRef | CompositeTensor
    holder: dict[Any, Any]  # the parameters or the buffers of one module
    key: Any  # in the holder


def module_state_dict(module: Opaque) -> dict[str, TensorRef | CompositeTensor]:
    """Return the state dict of a module: dotted names, without non-persistent buffers.

    Raises:
        DamagedError: the modules contain themselves, or unfold beyond any real model.
    """
    return {entry.name: entry.value for entry in module_entries(module)}


def module_entries(module: Opaque) -> Iterator[Entry]:
    """Yield the entries of a module's state dict; of two with one name the last counts.

    Extra state is left out too, since code in the module's class computes it.

    Source: torch 2.13 ``torch/nn/modules/module.py``, ``_save_to_state_dict``.

    Raises:
        DamagedError: the modules contain themselves, or unfold beyond any real model.
    """
    stack: list[tuple[str, Opaque, int]] = [("", module, 0)]
    steps = 0
    while stack:
        prefix, node, depth = stack.pop()
        steps += 1
        if depth > MAX_DEPTH or steps > MAX_STATE_DICT:
            raise DamagedError(f"the modules of {module.qualname} contain themselves")
        for entry in _own_entries(prefix, node.attributes):
            steps += 1
            yield entry
        stack.extend(
            (f"{prefix}{name}.", child, depth + 1)
            for name, child in reversed(_dict(node.attributes.get("_modules")).items())
            if isinstance(child, Opaque)
        )


def _own_entries(prefix: str, state: dict[Any, Any]) -> Iterator[Entry]:
    left_out = _names(state.get(NOT_PERSISTENT))
    for kind, without in (("_parameters", frozenset[str]()), ("_buffers", left_out)):
        holder = _dict(state.get(kind))
        for name, value in holder.items():
            if isinstance(value, TENSORS) and name not in without:
                yield Entry(f"{prefix}{name}", value, holder, name)


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def has_known_names(names: Any) -> bool:
    """Return whether the names of non-persistent buffers are text, in a container of Python's.

    Another container may hold others than the file shows, and another name may equal any text.
    """
    is_group = names is None or isinstance(names, _GROUPS)
    return is_group and PLAIN.issuperset(map(type, names or ()))


_GROUPS = (set, frozenset, list, tuple, dict)


def _names(value: Any) -> frozenset[str]:
    is_group = isinstance(value, _GROUPS)
    return frozenset(name for name in value if isinstance(name, str)) if is_group else frozenset()

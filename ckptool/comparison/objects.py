"""What a pickled object and the keys of a dict hold, part by part, nothing left out.

An object is known by its class and what it was made from; everything else about it is a part with
an address. Parts may have one name twice (an attribute and an item), and both are given. A module
has the names of its state dict, and those of its settings and its modules' beside them, with dots:
``encoder.weight``, ``dropout.p``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ckptool.comparison.spelling import Speller, is_plain, is_spelled_out
from ckptool.errors import DamagedError
from ckptool.tree import (
    MAX_STATE_DICT,
    GlobalRef,
    Key,
    Opaque,
    Tree,
    as_key,
    module_state_dict,
)

Parts = list[tuple[Key, Tree]]


# --------------------------------------------------------------------------------------------- keys


def keyed_by(table: dict[Any, Any], speller: Speller) -> str:
    """What addresses do not say of the keys of a dict; '' where they say it all.

    The keys 1 and "1" are written alike, and so is the first place of a list.
    """
    kinds = set(map(type, table))
    if kinds == {str}:
        return "text" if _is_like_a_list(table) else ""
    if kinds == {int}:
        return "int"
    return ", ".join(sorted(_key_text(key, speller) for key in table))


def _is_like_a_list(table: dict[str, Any]) -> bool:
    return "0" in table and set(table) == set(map(str, range(len(table))))


def _key_text(key: Any, speller: Speller) -> str:
    return speller.spell(key) if is_spelled_out(key) else f"<{type(key).__name__}>"


def key_parts(table: Iterable[Any]) -> Parts:
    """The keys that are compared themselves, since they are objects or tensors."""
    return [(f"{as_key(key)} (key)", key) for key in table if not is_spelled_out(key)]


# ------------------------------------------------------------------------------------------ objects


def object_text(node: Opaque, speller: Speller) -> str:
    """The class, and what it was made from as far as that is plain."""
    plain = [speller.spell(arg) for arg in node.args if _is_shown(arg)]
    keyed = (keyed_by(table, speller) for table in _tables(node))
    return f"{node.qualname}({', '.join(plain)})" + "".join(f" {k}" for k in keyed if k)


def _is_shown(arg: Any) -> bool:
    return is_plain(arg) or isinstance(arg, bytes)


def _tables(node: Opaque) -> list[dict[Any, Any]]:
    return [table for table in (node.items, node.state) if isinstance(table, dict) and table]


def object_parts(node: Opaque) -> Parts:
    """Everything that is not in the text."""
    args = [("args" if i == 0 else f"args{i}", arg) for i, arg in enumerate(node.args)]
    return [
        *_keyed(node.items or {}),
        *(_module_parts(node) if node.is_module else state_parts(node.state)),
        *enumerate(node.elements or ()),
        *((name, arg) for name, arg in args if not _is_shown(arg)),
        *_keyed(node.kwargs),
        *key_parts(node.items or {}),
    ]


def state_parts(state: Any) -> Parts:
    """The attributes: of ``__dict__`` and of ``__slots__``; or the state that is none of both."""
    if isinstance(state, dict):
        return _keyed(state)
    if isinstance(state, tuple) and len(state) == 2 and all(map(_is_attributes, state)):
        return [part for table in state for part in _keyed(table or {})]
    return [] if state is None else [("state", state)]


def _is_attributes(part: Any) -> bool:
    return part is None or isinstance(part, dict)


def _keyed(table: dict[Any, Any]) -> Parts:
    return [(as_key(key), value) for key, value in table.items()]


# ------------------------------------------------------------------------------------------ modules

# What every module has, mostly empty, and some more of it in each version of torch.
_BOOKKEEPING = frozenset(
    {
        "_non_persistent_buffers_set", "_backward_pre_hooks", "_backward_hooks",
        "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
        "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)  # fmt: skip
_TENSORS = frozenset({"_parameters", "_buffers"})


def _module_parts(module: Opaque) -> Parts:
    """The state dict, then what is in the modules besides, each as often as it is reachable."""
    named: Parts = list(module_state_dict(module).items())
    known = dict(named)
    stack: list[tuple[str, Opaque]] = [("", module)]
    while stack:
        prefix, node = stack.pop()
        for name, value in _own_parts(node):
            if known.get(prefix + name) is not value or value is None:
                named.append((prefix + name, value))
        inner = _modules(node)
        named += ((prefix + name, GlobalRef(*_split(child.qualname))) for name, child in inner)
        stack += ((f"{prefix}{name}.", child) for name, child in reversed(inner))
        if len(named) > MAX_STATE_DICT:
            raise DamagedError(f"the modules of {module.qualname} unfold without end")
    return named


def _modules(node: Opaque) -> list[tuple[str, Opaque]]:
    inner = node.attributes.get("_modules")
    rows = inner.items() if isinstance(inner, dict) else ()
    return [(str(name), child) for name, child in rows if _has_modules(child)]


def _has_modules(node: Any) -> bool:
    return isinstance(node, Opaque) and "_modules" in node.attributes


def _own_parts(node: Opaque) -> Iterator[tuple[str, Tree]]:
    """Of one module alone: its attributes, tensors that no state dict has, what is None."""
    for key, value in node.attributes.items():
        if key in _BOOKKEEPING and not value:
            continue
        if key in _TENSORS and isinstance(value, dict):
            yield from ((str(name), part) for name, part in value.items())
        elif key == "_modules" and isinstance(value, dict):
            yield from ((str(n), part) for n, part in value.items() if not _has_modules(part))
        else:
            yield str(key), value


def _split(qualname: str) -> tuple[str, str]:
    module, _, name = qualname.rpartition(".")
    return module, name

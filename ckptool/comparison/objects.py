"""Parts of pickled objects and of the keys of dicts, with nothing left out.

An object is identified by its class and the arguments that it was made from. Everything else about
it is a part with a key path. Two parts may have the same name (an attribute and an item); both are
given. A module has the names of its state dict, and those of its settings and its submodules'
settings beside them, with dots: ``encoder.weight``, ``dropout.p``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ckptool.comparison.spelling import Speller, is_spelled_out
from ckptool.errors import DamagedError
from ckptool.tree.describing import as_key
from ckptool.tree.modules import MAX_STATE_DICT, module_state_dict
from ckptool.tree.nodes import GlobalRef, Key, Opaque, Tree, is_plain

Parts = list[tuple[Key, Tree]]


def keyed_by(table: dict[Any, Any], speller: Speller) -> str:
    """Describe the keys of a dict where key paths are ambiguous; '' where they are not.

    The keys 1 and "1" are written alike, and so is the index 1 of a list.
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
    """Return the keys that are compared themselves, since they are objects or tensors."""
    return [(f"{as_key(key)} (key)", key) for key in table if not is_spelled_out(key)]


def object_text(node: Opaque, speller: Speller) -> str:
    """Return the class with its plain arguments, and a remark on the keys of its dicts."""
    plain = [speller.spell(arg) for arg in node.args if _is_shown(arg)]
    tables = (table for table in (node.items, node.state) if isinstance(table, dict) and table)
    keyed = (keyed_by(table, speller) for table in tables)
    return f"{node.qualname}({', '.join(plain)})" + "".join(f" {k}" for k in keyed if k)


def _is_shown(arg: Any) -> bool:
    return is_plain(arg) or isinstance(arg, bytes)


def object_parts(node: Opaque) -> Parts:
    """Return everything about an object that is not in its text."""
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
    """Return the attributes of ``__dict__`` and ``__slots__``, or another state as one part."""
    if isinstance(state, dict):
        return _keyed(state)
    is_pair = isinstance(state, tuple) and len(state) == 2
    if is_pair and all(part is None or isinstance(part, dict) for part in state):
        return [part for table in state for part in _keyed(table or {})]
    return [] if state is None else [("state", state)]


def _keyed(table: dict[Any, Any]) -> Parts:
    return [(as_key(key), value) for key, value in table.items()]


# ------------------------------------------------------------------------------------------ modules

# Attributes that every module has, mostly empty; each version of torch adds some.
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
    """Return the state dict, then the other parts of the modules, each as often as reachable."""
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
    """Yield the parts of one module: attributes, tensors outside the state dict, Nones."""
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

"""The completeness of weights: a part of them must never pass for all of them.

Everything in the container of a state dict is one of three:

* A plain tensor is written.
* A tensor in another form (``unplain.py``), or a container or object with tensors in it, is
  **refused** by name, with what to do.
* A plain value (a number, a configuration), or tensors that belong to something else (an optimizer,
  a random state, another candidate), is **left out**, and named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import eq, is_
from typing import Any

from ckptool.contents.finder import Finder, is_aside, is_random_state
from ckptool.contents.inventory import Leaf, Table
from ckptool.contents.unplain import (
    ALIKE,
    ARRAY,
    COMPUTED,
    CONTAINER,
    KEYED,
    OBJECT,
    PACKED,
    SHOWN_TEXT,
    STORAGE,
    UNNAMED,
    Unplain,
    is_computed,
)
from ckptool.formats.pickles.local_parts import LOCAL_PARTS
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tree.describing import as_key
from ckptool.tree.nodes import (
    ArrayRef,
    CompositeTensor,
    GlobalRef,
    Opaque,
    StorageRef,
    TensorRef,
    Tree,
)
from ckptool.tree.walking import children, walk

_QUANTIZED_PARTS = regex(r"_packed_params(\.|$)")
_SCRIPTED_OBJECT = "torch.ScriptObject"
# Masked arrays of numpy, whose values and mask are bytes in the object's state.
_MASKED = frozenset({"numpy.ma.core._mareconstruct", "numpy.ma._mareconstruct"})


class Remainder(NamedTuple):
    """Things in the container of a state dict that are not written, by name."""

    refused: Mapping[str, Unplain] = {}
    left_out: Mapping[str, str] = {}  # name -> what it is


def find_remainder(
    tables: Iterable[Table], elsewhere: Collection[int] = (), finder: Finder | None = None
) -> Remainder:
    """Find everything in the containers of state dicts besides the tensors that are taken.

    Args:
        tables: the state dicts that are taken.
        elsewhere: identities of the tensors in further state dicts, which are known.
        finder: one for all calls that look through one file.
    """
    finder = finder or Finder()
    wanted = tuple(tables)
    taken = identities(wanted)
    known = {name for table in wanted[1:] for name in (*wanted[0].entries, *table.entries)}
    found = [_beside(table, taken, elsewhere, finder, known) for table in wanted]
    return Remainder(
        {name: why for each in found for name, why in each.refused.items()},
        {name: what for each in found for name, what in each.left_out.items()},
    )


def identities(tables: Iterable[Table]) -> frozenset[int]:
    """Return the identities of the tensors in several state dicts."""
    return frozenset().union(*(map(id, table.entries.values()) for table in tables))


def unlisted(node: Tree) -> Mapping[str, Unplain]:
    """Return the refused entries of the nearest thing to a state dict, where there is none.

    A dict of numpy arrays is no state dict, and yet it may be all the weights that a file has.
    """
    for visit in walk(node):
        near = {
            str(key): _container(str(key), part, 1)
            for key, part in visit.children
            if isinstance(part, (ArrayRef, StorageRef)) and not is_random_state(part)
        }
        if near and isinstance(visit.node, (dict, Opaque)):
            return near
    return {}


# ------------------------------------------------------------------------------- beside the entries


def _beside(
    table: Table,
    taken: Collection[int],
    elsewhere: Collection[int],
    finder: Finder,
    known: Collection[str],
) -> Remainder:
    """Find everything in the container of a state dict that is none of its entries.

    Args:
        table: the state dict.
        taken: identities of the tensors that are written, wherever they lie.
        elsewhere: identities of tensors of other state dicts in the file, which are known.
        finder: looks into everything that is no tensor.
        known: names of tensors, if several state dicts are taken together.
    """
    refused = _badly_named(table)
    left_out: dict[str, str] = {}
    for name, node in _rest(table, finder):
        if isinstance(node, (TensorRef, CompositeTensor)):
            if name in table.entries:  # two parts of an object
                refused[f"{name} again"] = Unplain(ALIKE)
            elif id(node) not in taken:
                left_out[name] = _loose(node)
            continue
        every = finder.tensors_in(node)
        held = [leaf for leaf in every if id(leaf) not in taken]
        unknown = [leaf for leaf in held if id(leaf) not in elsewhere]
        if isinstance(node, Opaque) and node.qualname in _MASKED:
            refused[name] = Unplain(ARRAY, "masked")
        elif unknown and not is_aside(name, node, finder):
            refused[name] = _container(name, node, len(unknown))
        elif maker := _maker(name, node, known):
            refused[name] = Unplain(COMPUTED, maker)
        elif held or not every:
            left_out[name] = f"{_counted(len(held))} in {_called(node)}" if held else _called(node)
    refused.update(_unnamed(table))
    if isinstance(table.node, Opaque) and table.node.is_module:
        _add_module(table, taken, refused, left_out, finder)
    return Remainder(refused, {**left_out, **dict(_attributes_of(table.entries, finder))})


def _badly_named(table: Table) -> dict[str, Unplain]:
    """Return the tensors of a dict whose keys are no names: objects, or written like others."""
    held = table.node.items if isinstance(table.node, Opaque) else table.node
    if not isinstance(held, dict) or set(map(type, held)) <= {str}:  # nearly all of them
        return {}
    refused: dict[str, Unplain] = {}
    seen: set[str] = set()
    for key, part in held.items():
        name = str(as_key(key))
        if isinstance(part, (TensorRef, CompositeTensor)) and name.startswith(table.prefix):
            name = name[len(table.prefix) :]
            if name in seen:
                refused[f"{name} again"] = Unplain(ALIKE)
            elif isinstance(key, (Opaque, GlobalRef, TensorRef)):
                refused[name] = Unplain(KEYED)
            seen.add(name)
    return refused


def _loose(leaf: Leaf) -> str:
    is_counter = isinstance(leaf, TensorRef) and leaf.numel == 1 and not leaf.dtype.is_floating
    return "a counter" if is_counter else "a tensor of another part"


def _maker(name: str, node: Tree, known: Collection[str] = ()) -> str | None:
    """Return the class or function by which a loader may make a tensor in the place of a node."""
    if isinstance(node, Opaque) and (name in known or is_computed(node)):
        return node.qualname[:SHOWN_TEXT]
    return None


def _unnamed(table: Table) -> dict[str, Unplain]:
    """Return the entries that are arguments of an object; a named tuple is pickled that way."""
    node = table.node
    if not isinstance(node, Opaque) or node.is_module or node.attributes or node.items:
        return {}
    arguments = {id(part) for part in node.args}
    names = (name for name, leaf in table.entries.items() if id(leaf) in arguments)
    return {name: Unplain(UNNAMED, node.qualname[:SHOWN_TEXT]) for name in names}


def _attributes_of(entries: Mapping[str, Leaf], finder: Finder) -> Iterator[tuple[str, str]]:
    """Yield attributes of tensors that hold tensors: ``detach`` drops them from state dicts."""
    for name, ref in entries.items():
        if isinstance(ref, TensorRef) and ref.state and ref.subclass not in LOCAL_PARTS:
            for key, value in Opaque("", state=ref.state).attributes.items():
                if count := len(finder.tensors_in(value)):
                    yield f"{name}/{as_key(key)}", f"{_counted(count)} in an attribute of a tensor"


def _rest(table: Table, finder: Finder) -> Iterator[tuple[str, Tree]]:
    """Yield the parts of a container that are no entries, under the names of the state dict."""
    node, prefix, entries = table.node, table.prefix, table.entries
    if isinstance(node, Opaque) and node.is_module:
        return
    parts = _named_parts(node)
    finder.spend(len(parts))
    if isinstance(node, dict) and not prefix and _are_same(node, entries):
        return
    for key, part in parts:
        name = key if type(key) is str else str(as_key(key))
        if not prefix and part is not None and entries.get(name) is part:
            continue  # nearly all of them
        if name.startswith(prefix):
            name = name[len(prefix) :]
            if table.inside and name.removesuffix(table.suffix) in entries:
                continue  # one tensor of each part is taken; the rest are other tracks
            if entries.get(name) is not part or part is None:
                yield name, part


def _are_same(node: Mapping[Any, Tree], entries: Mapping[str, Leaf]) -> bool:
    """Return whether a dict has the very entries of a state dict, in the same order."""
    return (
        len(node) == len(entries)
        and all(map(is_, node.values(), entries.values()))
        and all(map(eq, node, entries))
    )


def _named_parts(node: Tree) -> Collection[tuple[Any, Tree]]:
    if isinstance(node, dict):
        return node.items()
    return [] if isinstance(node, CompositeTensor) else children(node)


def _container(name: str, node: Tree, count: int) -> Unplain:
    if isinstance(node, ArrayRef):
        return Unplain(ARRAY)
    if isinstance(node, StorageRef):
        return Unplain(STORAGE)
    if _QUANTIZED_PARTS.search(name):
        return Unplain(PACKED)
    kind = OBJECT if isinstance(node, Opaque) and not node.is_module else CONTAINER
    return Unplain(kind, f"{_counted(count)} in {_called(node)}")


def _counted(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _called(node: Tree) -> str:
    """Return the kind of a value, as a word or the name of its class."""
    if isinstance(node, Opaque):
        return f"an object {node.qualname[:SHOWN_TEXT]}"
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (dict, "a dict"), (tuple, "a tuple"), (list, "a list"), ((set, frozenset), "a set"),
        (bool, "a flag"), ((int, float, complex), "a number"), (str, "text"),
        (type(None), "None"), (ArrayRef, "a numpy array"), (bytes, "bytes"),
    )  # fmt: skip
    return next((text for kind, text in names if isinstance(node, kind)), "a value")


def _add_module(
    table: Table,
    taken: Collection[int],
    refused: dict[str, Unplain],
    left_out: dict[str, str],
    finder: Finder,
) -> None:
    """Add everything in a pickled module besides the parameters and buffers of its state dict.

    Its class may add to the state dict by code that is not run here. Quantized layers add their
    packed weights so. Other attributes are in no state dict.
    """
    from ckptool.tree.modules import NOT_PERSISTENT, has_known_names  # noqa: PLC0415 - for these

    stack: list[tuple[str, Tree]] = [("", table.node)]
    seen: set[int] = set()
    while stack:
        prefix, module = stack.pop()
        is_within = prefix.startswith(table.prefix) or table.prefix.startswith(prefix)
        if id(module) in seen or not is_within:
            continue
        seen.add(id(module))
        is_module = isinstance(module, Opaque) and module.is_module
        names = module.attributes.get(NOT_PERSISTENT) if is_module else None
        if not has_known_names(names):
            refused[f"{prefix}{NOT_PERSISTENT}"] = Unplain(COMPUTED, "its names are objects")
        for key, value in module.attributes.items() if is_module else ():
            if key == "_modules" and isinstance(value, dict):
                stack += [(f"{prefix}{name}.", child) for name, child in value.items()]
            elif key not in _HOOKS:
                held = _held(prefix, str(key), value, taken, finder)
                refused.update(held.refused)
                left_out.update(held.left_out)
        if isinstance(module, Opaque) and not module.is_module:  # a state that is no dict
            count = len(finder.tensors_in(module))
            if count:
                refused[prefix.removesuffix(".")] = Unplain(PACKED, _counted(count))


_HOOKS = frozenset({  # methods, bound to the module itself
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
})  # fmt: skip


_OF_STATE_DICT = frozenset({"_parameters", "_buffers"})


def _held(prefix: str, key: str, value: Tree, taken: Collection[int], finder: Finder) -> Remainder:
    """Return the packed objects and the tensors not taken in an attribute of a module."""
    refused: dict[str, Unplain] = {}
    left_out: dict[str, str] = {}
    named = {key: value}
    if key in _OF_STATE_DICT and isinstance(value, dict):
        named = {str(name): part for name, part in value.items()}
    for name, part in named.items():
        if isinstance(part, Opaque) and part.qualname == _SCRIPTED_OBJECT:
            refused[prefix + name] = Unplain(PACKED)
            continue
        if key in _OF_STATE_DICT and (maker := _maker(name, part)):
            refused[prefix + name] = Unplain(COMPUTED, maker)
            continue
        held = [leaf for leaf in finder.tensors_in(part) if id(leaf) not in taken]
        if held:
            left_out[prefix + name] = f"{_counted(len(held))} that state_dict() does not have"
    return Remainder(refused, left_out)

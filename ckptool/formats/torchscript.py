r"""TorchScript archives of ``torch.jit.save``: torch zips with code next to the pickle.

Layout, in addition to the records of ``torch_records.py``::

    <name>/constants.pkl            a tuple of tensors that the code names by number
    <name>/code/__torch__/a/b.py    the classes of ``__torch__.a.b``, as text

A module is pickled as an object ``__torch__.a.b.Class`` whose attributes (tensors, submodules and
flags) are in one flat dict. The class in the code lists its parameters and buffers::

    class Linear(Module):
      __parameters__ = ["weight", "bias", ]
      __buffers__ = []

The one idea: with these lists each object gets the attributes of a pickled ``nn.Module``
(``_parameters``, ``_buffers``, ``_modules``). So all code for modules works for it too, and the
state dict is the one that ``torch.jit.load(path).state_dict()`` returns. The code is read as text,
two lines of each class, and never run.

Source: torch 2.13 ``torch/csrc/jit/serialization/python_print.cpp``, ``export_module.cpp``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.script_code import CODE, sources
from ckptool.formats.zips.records import ZipArchive
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tree.nodes import Opaque, Tree
from ckptool.tree.walking import MAX_PARTS, walk

_CLASS = regex(
    r"^class (?P<name>\w+)\(Module\):\n"
    r"  __parameters__ = \[(?P<parameters>[^\]\n]*)\]\n"
    r"  __buffers__ = \[(?P<buffers>[^\]\n]*)\]$",
    re.MULTILINE,
)
_NAME = regex(r'"((?:[^"\\]|\\.)*)"')


class ScriptClass(NamedTuple):
    """The parameters and buffers that a class of the code lists."""

    parameters: frozenset[str]
    buffers: frozenset[str]


def read_classes(archive: ZipArchive, folder: str) -> Mapping[str, ScriptClass]:
    """Return the module classes in the code by qualified names: ``__torch__.a.b.Class``.

    Raises:
        DamagedError: there is more code than any model has.
    """
    found: dict[str, ScriptClass] = {}
    start = len(folder + CODE)
    for record, text in sources(archive, folder):
        found.update(_classes(text, record.name[start : -len(".py")].replace("/", ".")))
    return found


def _classes(text: str, module: str) -> dict[str, ScriptClass]:
    return {
        f"{module}.{match['name']}": ScriptClass(
            frozenset(_NAME.findall(match["parameters"])),
            frozenset(_NAME.findall(match["buffers"])),
        )
        for match in _CLASS.finditer(text)
    }


def name_modules(tree: Tree, classes: Mapping[str, ScriptClass]) -> None:
    """Give each scripted module in the tree the attributes that ``nn.Module`` has."""
    modules = [
        visit.node
        for visit in walk(tree)
        if isinstance(visit.node, Opaque)
        and visit.alias_of is None
        and visit.node.qualname in classes
    ]
    scripted = {id(module) for module in modules}
    room = MAX_PARTS
    for module in modules:
        if isinstance(module.state, dict):
            room -= len(module.state)
            if room < 0:  # a hostile pickle gives one dict to a million objects
                raise DamagedError(f"scripted modules with more than {MAX_PARTS} attributes")
            module.state = _as_module(module.state, classes[module.qualname], scripted)


def _as_module(flat: dict[Any, Any], known: ScriptClass, scripted: set[int]) -> dict[Any, Any]:
    parameters: dict[Any, Any] = {}
    buffers: dict[Any, Any] = {}
    modules: dict[Any, Any] = {}
    rest: dict[Any, Any] = {}
    for name, part in flat.items():  # in the order of the class, as in the lists
        if name in known.parameters:
            parameters[name] = part
        elif name in known.buffers:
            buffers[name] = part
        else:
            (modules if id(part) in scripted else rest)[name] = part
    return {**rest, "_parameters": parameters, "_buffers": buffers, "_modules": modules}

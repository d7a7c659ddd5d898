"""Names that a ``__del__`` asks for: the tables have all that the installed classes ask for."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import sysconfig
import textwrap
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptool.formats.pickles.asked import is_special
from ckptool.formats.pickles.dropped import CALLED, READ_BESIDE, READ_WHEN_DROPPED
from ckptool.formats.pickles.vetted import VETTED

# The finalizer of files is written in C, and calls these: a class of Python's has its own.
BY_FILES = ["close", "closed", "flush"]
IS_FILE = re.compile(r"def __del__|class \w+\(.*(IO|Base|Stream)")
# Tests, programs with windows, and modules of other systems.
LEFT_OUT = {
    "site-packages", "test", "tests", "testing", "tkinter", "idlelib", "lib2to3", "turtledemo",
    "_pyio", "_inductor", "_dynamo", "_native",
}  # fmt: skip


def modules() -> Iterator[types.ModuleType]:
    """Yield the modules of Python, numpy and torch whose sources have a ``__del__``, or a file."""
    roots = [(Path(sysconfig.get_path("stdlib")), "")]
    roots += [(Path(each.__file__).parent, f"{each.__name__}.") for each in (np, torch)]
    for root, prefix in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if LEFT_OUT.isdisjoint(parts) and IS_FILE.search(path.read_text(errors="replace")):
                name = prefix + ".".join(parts).removesuffix(".__init__")
                try:
                    with warnings.catch_warnings(action="ignore"):
                        yield importlib.import_module(name)
                except Exception:  # noqa: BLE001
                    continue  # of another system, or of a package that is not installed


def classes() -> list[type]:
    return [
        cls
        for module in modules()
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__ and hasattr(cls, "__del__")
    ]


def function(cls: type, name: str) -> types.FunctionType | None:
    """The method or the getter of a property, if it is written in Python."""
    found = inspect.getattr_static(cls, name, None)
    found = found.fget if isinstance(found, property) else found
    return found if isinstance(found, types.FunctionType) else None


def mangled(cls: type, method: str, name: str) -> str:
    """The name as Python stores it: one with two underscores has its class in front."""
    if not name.startswith("__") or is_special(name):
        return name
    owner = next(each for each in cls.__mro__ if method in vars(each))
    return f"_{owner.__name__.lstrip('_')}{name}"


def asked_for(cls: type) -> tuple[set[str], set[str]]:
    """The names that ``__del__`` calls on its object, and those that it reads, at any depth."""
    of_file = BY_FILES if issubclass(cls, io.IOBase) else []
    waiting, seen, called, read = ["__del__", *of_file], set(), set(), set()
    while waiting:
        name = waiting.pop()
        method = function(cls, name)
        if name in seen or method is None:
            continue
        seen.add(name)
        tree = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            continue
        itself = tree.args.args[0].arg
        calls = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Store):
                continue
            if ast.unparse(node.value) == itself:
                (called if id(node) in calls else read).add(mangled(cls, name, node.attr))
                waiting.append(node.attr)
        if f"{{{itself}" in ast.unparse(tree):  # shown in a text
            waiting += ["__repr__", "__str__"]
    return called, read


def test_the_tables_have_every_name_that_the_installed_classes_ask_for():
    found = [cls for cls in classes() if f"{cls.__module__}.{cls.__qualname__}" not in VETTED]
    called, read = map(set.union, *(asked_for(cls) for cls in found))
    special = {name for name in called | read if is_special(name)}
    assert len(found) > 30
    assert not called - CALLED - special
    assert not read - CALLED - READ_WHEN_DROPPED - READ_BESIDE - special


@pytest.mark.parametrize("table", [CALLED, READ_WHEN_DROPPED, READ_BESIDE])
def test_the_tables_have_no_special_names(table):
    """Those are asked for whatever an object is."""
    assert not [name for name in table if is_special(name)]

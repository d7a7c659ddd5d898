"""A scan of the sources of installed packages for classes that run code when they are made."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("torch", "numpy", "functorch")
TESTS = {"testing", "tests", "test"}


class Class(NamedTuple):
    """A class in a source file: its place, the last names of its bases, and its own methods."""

    module: str
    name: str
    bases: frozenset[str]
    methods: frozenset[str]


def classes() -> list[Class]:
    """Return all classes of torch and numpy, as their sources define them; nothing is imported."""
    found: list[Class] = []
    for package in PACKAGES:
        root = Path(importlib.util.find_spec(package).origin).parent
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            if TESTS.isdisjoint(parts):
                module = ".".join(parts).removesuffix(".__init__")
                found += _in_file(module, path.read_text(errors="replace"))
    return found


def with_method(known: list[Class], method: str, harmless: set[str]) -> set[str]:
    """Return the names of the classes that have a method, or inherit it from another of them."""
    by_package: dict[tuple[str, str], list[Class]] = {}
    for each in known:
        for base in each.bases:
            by_package.setdefault((each.module.partition(".")[0], base), []).append(each)
    waiting = [each for each in known if method in each.methods]
    found: set[str] = set()
    while waiting:
        each = waiting.pop()
        name = f"{each.module}.{each.name}"
        if name not in found:
            found.add(name)
            if name not in harmless:
                last = each.name.rpartition(".")[2]
                waiting += by_package.get((each.module.partition(".")[0], last), [])
    return found


def _in_file(module: str, source: str) -> Iterator[Class]:
    if "class " in source:
        yield from _inside(ast.parse(source), module, "")


def _inside(node: ast.AST, module: str, prefix: str) -> Iterator[Class]:
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef):
            name = prefix + child.name
            bases = frozenset(ast.unparse(base).rpartition(".")[2] for base in child.bases)
            yield Class(module, name, bases, frozenset(_names(child)))
            yield from _inside(child, module, f"{name}.")
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _inside(child, module, prefix)


def _names(cls: ast.ClassDef) -> Iterator[str]:
    for child in cls.body:
        if isinstance(child, ast.FunctionDef):
            yield child.name
        elif isinstance(child, ast.Assign):
            yield from (target.id for target in child.targets if isinstance(target, ast.Name))

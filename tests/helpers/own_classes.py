"""A scan of the sources of installed packages for classes that run code, and for imports."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
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


class Import(NamedTuple):
    """A name that a module imports, or that it takes from a module that it imports."""

    module: str
    name: str
    source: str  # the module that it is from,
    original: str  # and its name there


def classes() -> list[Class]:
    """Return all classes of torch and numpy, as their sources define them; nothing is imported."""
    found: list[Class] = []
    for module, _, source in _files(PACKAGES):
        found += _in_file(module, source)
    return found


def imports(packages: tuple[str, ...]) -> Iterator[Import]:
    """Yield the names that modules of packages have from others, as their sources say."""
    for module, is_package, source in _files(packages):
        parents = module.split(".") if is_package else module.split(".")[:-1]
        yield from _imported(module, parents, ast.parse(source).body, {})


def called_on_self(known: Callable[[str], bool], method: str) -> set[str]:
    """Return the methods of its own object that a method calls, in modules that are ``known``."""
    found: set[str] = set()
    for module, _, source in _files(PACKAGES):
        if not known(module) or method not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name == method:
                calls = (c.func for c in ast.walk(node) if isinstance(c, ast.Call))
                found |= {f.attr for f in calls if ast.unparse(f) == f"self.{_last(f)}"}
    return found


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ""


def _files(packages: tuple[str, ...]) -> Iterator[tuple[str, bool, str]]:
    """Yield each module of packages, whether it is a package itself, and its source."""
    for package in packages:
        root = Path(importlib.util.find_spec(package).origin).parent
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            if TESTS.isdisjoint(parts):
                module = ".".join(parts).removesuffix(".__init__")
                yield module, path.name == "__init__.py", path.read_text(errors="replace")


def _imported(
    module: str, parents: list[str], body: list[ast.stmt], modules: dict[str, str]
) -> Iterator[Import]:
    """Yield what statements import, and assign of what they imported."""
    for node in body:
        if isinstance(node, ast.Import):
            for each in node.names:
                first = each.name.partition(".")[0]
                modules[each.asname or first] = each.name if each.asname else first
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for each in node.names:
                yield Import(module, each.asname or each.name, source, each.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            source = modules.get(ast.unparse(node.value.value), "")
            for target in node.targets if source else ():
                yield Import(module, ast.unparse(target), source, node.value.attr)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imported(module, parents, node.orelse, modules)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _imported(module, parents, _statements(node), modules)


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
    for child in _statements(node):
        if isinstance(child, ast.ClassDef):
            name = prefix + child.name
            bases = frozenset(ast.unparse(base).rpartition(".")[2] for base in child.bases)
            yield Class(module, name, bases, frozenset(_names(child)))
            yield from _inside(child, module, f"{name}.")
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _inside(child, module, prefix)


def _statements(node: ast.AST) -> list[ast.stmt]:
    """Return the statements in a module, a class, or all branches of an ``if`` or a ``try``."""
    handlers = [part for each in getattr(node, "handlers", ()) for part in each.body]
    return [*getattr(node, "body", ()), *getattr(node, "orelse", ()), *handlers]


def _names(cls: ast.ClassDef) -> Iterator[str]:
    for child in cls.body:
        if isinstance(child, ast.FunctionDef):
            yield child.name
        elif isinstance(child, ast.Assign):
            yield from (target.id for target in child.targets if isinstance(target, ast.Name))


def derived(packages: frozenset[str]) -> Iterator[str]:
    """Yield the names of torch's and numpy's classes with a base from one of other packages."""
    for module, is_package, source in _files(PACKAGES):
        if not any(package in source for package in packages):
            continue
        tree = ast.parse(source)
        parents = module.split(".") if is_package else module.split(".")[:-1]
        modules: dict[str, str] = {}
        taken = {
            each.name: each.source for each in _imported(module, parents, tree.body, modules)
        } | modules
        theirs = {name for name, of in taken.items() if of.partition(".")[0] in packages}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                roots = {ast.unparse(base).partition(".")[0] for base in node.bases}
                if not roots.isdisjoint(theirs):
                    yield f"{module}.{node.name}"

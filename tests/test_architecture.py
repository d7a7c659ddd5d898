"""The layers of the package, kept true: who may import whom, and what must not be there at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import ckptool
from output import environment
from paths import FIXTURES

PACKAGE = Path(ckptool.__file__).parent
EXPORTED = FIXTURES / "ema" / "emacallback" / "exported.ckpt"

# Group -> (its modules, the groups that they may import). Only what stands above may be imported,
# so there are no circles between groups. A new module has to say here where it belongs.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "errors": (("errors",), ()),
    "dtypes": (("dtypes",), ()),
    "words": (("markers",), ()),
    "reports": (("reports", "verify_reports", "diff_reports"), ()),
    "provenance": (("provenance",), ()),
    "rules": (("rules",), ("reports",)),
    "ranks": (("ranks",), ("errors",)),
    "interrupts": (("interrupts",), ()),
    "tree": (("tree",), ("dtypes", "errors")),
    "formats": (("formats", "formats.*", "trust"), ("tree", "words", "dtypes", "errors")),
    "numerics": (
        ("numerics", "casting", "rounding", "crc"),
        ("formats", "tree", "reports", "dtypes", "errors"),
    ),
    "inventory": (("inventory",), ("tree",)),
    "ema": (
        (
            "ema", "candidates", "alignment", "ordering", "evidence", "direction", "groups",
            "layouts", "metadata", "optimizers", "refusals", "selection", "siblings", "config",
            "ema_findings",
        ),
        ("inventory", "formats", "tree", "provenance", "words", "rules", "reports", "errors"),
    ),
    "views": (
        ("sections", "training", "trust_findings"),
        ("ema", "inventory", "formats", "tree", "rules", "reports"),
    ),
    "plans": (("plans", "renaming"), ("ema", "inventory", "tree", "errors")),
    "soundness": (
        ("soundness", "scan"),
        ("views", "ema", "numerics", "formats", "tree", "rules", "ranks", "reports", "errors"),
    ),
    "checks": (
        ("checks", "checks.*"),
        (
            "plans", "soundness", "views", "ema", "inventory", "numerics", "formats", "tree",
            "rules", "ranks", "reports", "errors",
        ),
    ),
    "comparison": (
        ("comparison", "comparison.*"),
        (
            "soundness", "plans", "views", "ema", "numerics", "formats", "tree", "ranks",
            "reports", "dtypes", "errors",
        ),
    ),
    "writers": (
        ("writers", "writers.*"),
        ("numerics", "formats", "tree", "dtypes", "provenance", "interrupts", "errors"),
    ),
    "promotion": (
        ("promotion",),
        ("writers", "plans", "ema", "inventory", "formats", "tree", "errors"),
    ),
    "commands": (
        ("commands", "commands.*", "origin"),
        (
            "promotion", "writers", "comparison", "plans", "checks", "soundness", "views", "ema",
            "inventory", "numerics", "formats", "tree", "dtypes", "rules", "ranks", "provenance",
            "reports", "errors", "root",
        ),
    ),
    "render": (("render", "render.*"), ("reports",)),
    "library": (
        ("library", "torch_bridge"),
        ("plans", "soundness", "ema", "numerics", "formats", "tree", "errors"),
    ),
    "testing": (("testing",), ("render", "commands", "comparison")),
    "cli": (
        ("cli", "cli.*"),
        (
            "render", "commands", "comparison", "ema", "interrupts", "rules", "ranks", "reports",
            "errors", "root",
        ),
    ),
    "root": (("", "__main__"), ("cli", "library", "formats", "interrupts", "errors")),
}  # fmt: skip


def module_name(path: Path) -> str:
    """``formats.torch_zip``; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def group_of(module: str) -> str:
    """The first group that has the module."""
    for group, (patterns, _) in GROUPS.items():
        if any(fnmatchcase(module, pattern) for pattern in patterns):
            return group
    raise AssertionError(f"ckptool.{module} belongs to no group: say in GROUPS where it stands")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported, also inside functions and for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> Iterator[str]:
    """Modules of the package that a module imports."""
    for name in imported(SOURCES[module]):
        package, _, rest = name.partition(".")
        if package == "ckptool":
            yield rest if rest in SOURCES else rest.rpartition(".")[0]


# ------------------------------------------------------------------------------------------- arrows


@pytest.mark.parametrize("module", SOURCES)
def test_modules_import_only_from_their_right(module):
    group = group_of(module)
    allowed = {group, *GROUPS[group][1]}
    wrong = {other for other in own_imports(module) if group_of(other) not in allowed}
    assert not wrong, f"ckptool.{module} ({group}) imports {wrong}"


def test_groups_stand_below_what_they_import():
    names = list(GROUPS)
    circles = {
        (name, other)
        for name, (_, allowed) in GROUPS.items()
        for other in allowed
        if names.index(other) >= names.index(name)
    }
    assert circles == {("cli", "root"), ("commands", "root")}  # the version


def test_every_arrow_is_used():
    used = {group_of(m): set() for m in SOURCES}
    for module in SOURCES:
        used[group_of(module)] |= {group_of(other) for other in own_imports(module)}
    unused = {
        f"{name} -> {other}"
        for name, (_, allowed) in GROUPS.items()
        for other in allowed
        if other not in used[name]
    }
    assert not unused


# --------------------------------------------------------------------------- who knows whom outside

HOMES = {
    "rich": {"render.terminal"},
    # The kernels of the comparison are given numpy or torch as a namespace.
    "numpy": {"numerics", "casting", "rounding", "comparison.arrays"},
    "ml_dtypes": {"numerics", "casting", "rounding", "comparison.arrays"},
    "torch": {"torch_bridge", "library", "comparison.devices", "ranks"},
    "safetensors": {"writers.safetensors_file"},
    "click": set(),
    "ctypes": set(),
    "dill": set(),
    "marshal": set(),
    "mmap": {"torch_bridge"},
    "pickle": set(),
    "pydantic": set(),
    "runpy": set(),
    "shelve": set(),
    "subprocess": set(),
    "tarfile": set(),
    "zipfile": set(),
}


@pytest.mark.parametrize("outside", HOMES)
def test_a_library_has_one_home(outside):
    users = {
        module
        for module, tree in SOURCES.items()
        if any(name.partition(".")[0] == outside for name in imported(tree))
    }
    assert users == HOMES[outside]


def test_typer_is_for_the_command_line():
    users = {m for m, tree in SOURCES.items() if "typer" in set(imported(tree))}
    assert {group_of(module) for module in users} == {"cli"}


HEAVY = {"torch", "numpy", "ml_dtypes", "rich", "safetensors"}


@pytest.mark.parametrize("module", SOURCES)
def test_what_is_heavy_is_imported_when_used(module):
    for node in SOURCES[module].body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not HEAVY & {name.partition(".")[0] for name in imported(node)}


# --------------------------------------------------------------------------------- words not to use


def calls(tree: ast.AST) -> Iterator[str]:
    """The functions called, as written."""
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


NEVER = {"print", "eval", "exec", "compile", "__import__", "input", "globals", "os.system"}


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_is_printed_or_executed(module):
    assert not NEVER & set(calls(SOURCES[module]))
    loads = {name for name in calls(SOURCES[module]) if name.endswith((".load", ".Unpickler"))}
    assert not loads
    if module:  # the package finds its own public names
        assert not [name for name in calls(SOURCES[module]) if "import_module" in name]


@pytest.mark.parametrize("module", [m for m in SOURCES if group_of(m) != "cli"])
def test_only_the_command_line_knows_environment_and_streams(module):
    names = {ast.unparse(n) for n in ast.walk(SOURCES[module]) if isinstance(n, ast.Attribute)}
    known = {"os.environ", "os.getenv", "sys.stdout", "sys.stderr", "sys.argv", "sys.exit"}
    assert not known & names


# ---------------------------------------------------------------------------------- fresh processes

DRIVER = """
import sys
from ckptool.cli import main
code = main(sys.argv[1:])
print(code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def modules_after(*args) -> set[str]:
    """The top-level modules that a successful run has imported."""
    command = [sys.executable, "-c", DRIVER, *map(str, args)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    code, *modules = done.stderr.split()
    assert code == "0", done.stdout
    return set(modules)


@pytest.mark.parametrize("options", [(), ("--json",), ("--tensors", "--match", "*weight")], ids=str)
def test_inspect_imports_neither_torch_nor_numpy(options):
    modules = modules_after("inspect", EXPORTED, *options)
    assert not modules & HEAVY


def test_rich_is_for_terminals():
    assert "rich" in modules_after("inspect", EXPORTED, "--color", "always")


@pytest.mark.parametrize("kind", ["resume", "formats/pickle", "formats/torch_legacy"])
def test_inspect_of_a_folder_imports_neither(kind):
    assert not modules_after("inspect", FIXTURES / kind) & {"torch", "numpy", "ml_dtypes"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_extract_imports_no_torch(suffix, tmp_path):
    modules = modules_after("extract-ema", EXPORTED, "-o", tmp_path / f"ema{suffix}")
    assert "torch" not in modules


def test_promote_imports_no_torch(tmp_path):
    modules = modules_after("promote-ema", EXPORTED, "-o", tmp_path / "promoted.ckpt")
    assert "torch" not in modules


def test_the_package_itself_imports_next_to_nothing():
    code = "import sys, ckptool; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert [name for name in modules if name.startswith("ckptool")] == ["ckptool"]
    assert not {name.partition(".")[0] for name in modules} & (HEAVY | {"typer"})

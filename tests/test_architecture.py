"""The layers of the package, kept true: who may import whom, and what must not be there at all."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ckptool
from ckptool.checks import registry
from ckptool.render.outputs import RENDERERS
from helpers.output import environment
from helpers.paths import FIXTURES

PACKAGE = Path(ckptool.__file__).parent
EXPORTED = FIXTURES / "ema" / "emacallback" / "exported.ckpt"

# The rooms of the package, each with those that it may import, which stand above it: there are no
# circles between them. A room is a package or a module at the top.
ROOMS: dict[str, str] = {
    "records": "",
    "regex": "",
    "errors": "",
    "dtypes": "",
    "names": "",
    "toml": "",
    "reports": "",
    "process": "errors",
    "sources": "process errors",
    "tree": "sources dtypes errors",
    "formats": "tree sources process names dtypes errors",
    "tensors": "formats tree sources process reports dtypes errors",
    "contents": "tensors formats tree sources names reports errors",
    "ema": "contents tensors formats tree sources names reports errors",
    "writers": "tensors formats tree sources process dtypes errors",
    "plans": (
        "ema writers contents tensors formats tree sources process names reports dtypes toml errors"
    ),
    "checks": "plans ema contents tensors formats tree sources process names reports errors",
    "comparison": (
        "plans ema contents tensors formats tree sources process names reports dtypes errors"
    ),
    "api": "plans tensors formats errors",
    "commands": (
        "comparison checks plans writers ema contents tensors formats tree sources process reports "
        "dtypes errors root"
    ),
    "render": "formats reports",
    "testing": "render commands comparison contents",
    "cli": "render commands comparison ema contents sources process reports toml errors root",
    "__main__": "cli process root",
    "root": "api formats errors",
}  # fmt: skip
EVERYWHERE = {"records", "regex"}  # rooms that all may import, as they may the standard library
ROOT = "root"  # ``ckptool/__init__.py``; its version is known to those that tell it
AT_THE_TOP = 10  # modules beside the packages, at most
LONG = 400  # lines: a longer module wants to be two
MAY_BE_LONG = {"formats.pickles.machine"}  # one loop


def module_name(path: Path) -> str:
    """``formats.torch_zip``; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in PACKAGE.rglob("*.py")}
PACKAGES = {module for module, path in PATHS.items() if module and path.name == "__init__.py"}


@cache
def source(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text())


def room_of(module: str) -> str:
    """The package or the module at the top that a module belongs to."""
    room = module.partition(".")[0] or ROOT
    assert room in ROOMS, f"ckptool.{room} is new: say in ROOMS what it may import"
    return room


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported, also inside functions and for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports(module: str) -> tuple[str, ...]:
    return (*imported(source(module)),)


def own_imports(module: str) -> Iterator[str]:
    """Modules of the package that a module imports."""
    for name in imports(module):
        package, _, rest = name.partition(".")
        if package == "ckptool":
            yield rest if rest in PATHS else rest.rpartition(".")[0]


# ------------------------------------------------------------------------------------------- arrows


def test_modules_import_only_from_rooms_that_they_may():
    wrong = {
        (module, other)
        for module in PATHS
        for other in own_imports(module)
        if room_of(other) not in {room_of(module), *ROOMS[room_of(module)].split()} | EVERYWHERE
    }
    assert not wrong


def test_no_import_runs_upwards():
    names = list(ROOMS)
    upwards = {
        (room, other)
        for room, allowed in ROOMS.items()
        for other in allowed.split()
        if names.index(other) >= names.index(room)
    }
    assert upwards == {("cli", ROOT), ("commands", ROOT), ("__main__", ROOT)}  # the version


def test_every_arrow_is_used():
    used = {room_of(m): set() for m in PATHS}
    for module in PATHS:
        used[room_of(module)] |= {room_of(other) for other in own_imports(module)}
    unused = {
        f"{room} -> {other}"
        for room, allowed in ROOMS.items()
        for other in allowed.split()
        if other not in used[room]
    }
    assert not unused


@pytest.mark.parametrize("room", ROOMS)
def test_the_files_of_a_room_import_each_other_in_no_circle(room):
    files = {
        module: {m for m in own_imports(module) if room_of(m) == room and m != module}
        for module in PATHS
        if room_of(module) == room
    }
    while free := [module for module, imports in files.items() if not imports & files.keys()]:
        for module in free:
            del files[module]
    assert not files, f"these import each other, or something that does: {sorted(files)}"


def test_few_modules_stand_beside_the_packages():
    assert len([m for m in PATHS if "." not in m and m not in PACKAGES]) <= AT_THE_TOP


def test_no_module_is_long():
    long = {m for m, path in PATHS.items() if len(path.read_text().splitlines()) > LONG}
    assert long == MAY_BE_LONG


# ---------------------------------------------------------------------------- who is tested by whom

# Modules that no test imports are tested through commands: a failure there names the command, and
# not the module. So there may be no more of them. Tests run over all rows of these two tables.
THROUGH_COMMANDS = 65
IN_TABLES = {
    *(f"render.{each.partition('.')[0]}" for row in RENDERERS.values() for each in row.values()),
    *(f"checks.{name}" for name in vars(registry) if f"checks.{name}" in PATHS),
}
IMPORT = re.compile(r"^\s*(?:from|import) (ckptool[\w.]*)(?: import ([\w, ]+))?", re.MULTILINE)


def test_most_modules_are_imported_by_a_test():
    named = set()
    for path in Path(__file__).parent.rglob("*.py"):
        for module, names in IMPORT.findall(path.read_text()):
            named |= {module, *(f"{module}.{name.strip()}" for name in names.split(","))}
    modules = PATHS.keys() - PACKAGES - IN_TABLES
    alone = [module for module in modules if f"ckptool.{module}" not in named]
    assert len(alone) <= THROUGH_COMMANDS, f"a new module wants a test: {sorted(alone)}"


def test_files_of_tests_have_names_of_their_own():
    """pytest takes two of one name for one module."""
    files = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, count in files.items() if count > 1]


# --------------------------------------------------------------------------- who knows whom outside

HOMES = {
    "rich": {"render.terminal"},
    # The kernels of the comparison are given numpy or torch as a namespace.
    "numpy": {
        "tensors.blocks",
        "tensors.casting",
        "tensors.mean",
        "tensors.finite",
        "tensors.statistics",
        "plans.posthoc",
        "comparison.arrays",
    },
    "ml_dtypes": {"tensors.blocks", "tensors.casting", "comparison.arrays"},
    "torch": {"tensors.as_torch", "api", "comparison.devices", "process.ranks"},
    "safetensors": {"writers.safetensors_file"},
    "obstore": {"sources.remote.cloud"},
    "boto3": {"sources.remote.cloud"},
    "socket": {"sources.remote.connections"},
    "ssl": {"sources.remote.connections"},
    "typer": {"cli.program"},
    "click": set(),
    "ctypes": set(),
    "dill": set(),
    "marshal": set(),
    "mmap": {"tensors.as_torch", "writers.files.copying"},
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
        for module in PATHS
        if any(name.partition(".")[0] == outside for name in imports(module))
    }
    assert users == HOMES[outside]


HEAVY = {"torch", "numpy", "ml_dtypes", "rich", "safetensors"}


def test_what_is_heavy_is_imported_when_used():
    at_the_top = {
        (module, name)
        for module in PATHS
        for node in source(module).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imported(node)
    }
    assert not [each for each in at_the_top if each[1].partition(".")[0] in HEAVY]


# --------------------------------------------------------------------------------- words not to use


@cache
def calls(module: str) -> frozenset[str]:
    """The functions called, as written."""
    nodes = ast.walk(source(module))
    return frozenset(ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call))


# Tables of names, of which only what is used is imported: public names, commands, renderers.
LATE = {"", "cli.catalogue", "render.outputs"}
NEVER = {"print", "eval", "exec", "compile", "__import__", "input", "globals", "os.system"}


def test_nothing_is_printed_or_executed():
    called = {(module, name) for module in PATHS for name in calls(module)}
    assert not [each for each in called if each[1] in NEVER]
    assert not [each for each in called if each[1].endswith((".load", ".Unpickler"))]
    assert {module for module, name in called if "import_module" in name} <= LATE


# Credentials are no options: they are where each ecosystem keeps them, for the library too. The
# start of the command line tells the version.
KNOWS_THE_ENVIRONMENT = {"sources.remote.credentials", "__main__"}


def test_only_the_command_line_knows_environment_and_streams():
    known = {"os.environ", "os.getenv", "sys.stdout", "sys.stderr", "sys.argv", "sys.exit"}
    parts = {name.partition(".")[2] for name in known}
    wrong = {
        (module, ast.unparse(node))
        for module in PATHS
        if room_of(module) != "cli" and module not in KNOWS_THE_ENVIRONMENT
        for node in ast.walk(source(module))
        if isinstance(node, ast.Attribute) and node.attr in parts
    }
    assert not [each for each in wrong if each[1] in known]


# ----------------------------------------------------------------------------- who changes the disk

# Methods that create, replace or delete something; of ``shutil`` and ``tempfile`` all functions do,
# but those in ``READING``.
CHANGING = frozenset({
    "chmod", "fchmod", "ftruncate", "hardlink_to", "link", "makedirs", "mkdir", "mkfifo", "mknod",
    "pwrite", "pwritev", "removedirs", "rename", "renames", "rmdir", "rmtree",
    "symlink", "symlink_to", "touch", "truncate", "unlink", "write_bytes", "write_text",
})  # fmt: skip
READING = frozenset({"shutil.disk_usage", "shutil.get_terminal_size"})
OPENING = re.compile(r"O_CREAT|O_WRONLY|O_RDWR|O_TRUNC|O_APPEND|TO_LOCK")
WRITE_MODE = re.compile(r"[wax+]")


def changes(tree: ast.AST) -> Iterator[str]:
    """Calls that can change the disk, as written."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, args = ast.unparse(node.func), list(map(ast.unparse, node.args))
        modes = [a.strip("'") for a in args[:2]] + [
            ast.unparse(word.value).strip("'") for word in node.keywords if word.arg == "mode"
        ]
        is_open = name in {"open", "io.open"} or name.endswith(".open")
        if (
            (name.rpartition(".")[2] in CHANGING and "." in name)
            or name in {"os.replace", "os.remove"}
            or (name.startswith(("shutil.", "tempfile.")) and name not in READING)
            or (name == "os.open" and OPENING.search(" ".join(args)))
            or (is_open and any(WRITE_MODE.search(mode) for mode in modes if len(mode) < 4))
        ):
            yield ast.unparse(node)


# A stream that was closed gets a new place for what is left to say.
NO_FILES = {"cli": {"os.open(os.devnull, os.O_WRONLY)"}}


def test_only_the_writers_change_the_disk():
    """What they write, replace and delete is a table in SECURITY.md."""
    others = {m: set(changes(source(m))) for m in PATHS if room_of(m) != "writers"}
    assert {module: found for module, found in others.items() if found} == NO_FILES


@pytest.mark.parametrize(
    "code",
    [
        "open('a', 'w')", "path.open('r+b')", "open('a', mode='xb')", "path.write_text('a')",
        "os.replace(a, b)", "shutil.copy(a, b)", "os.open(a, os.O_RDWR | os.O_CREAT)",
        "path.unlink()", "tempfile.mkstemp()",
    ],
)  # fmt: skip
def test_a_change_of_the_disk_is_seen(code):
    assert list(changes(ast.parse(code)))


def test_the_writers_change_it_in_few_places():
    doors = {m for m in PATHS if room_of(m) == "writers" and list(changes(source(m)))}
    assert doors == {
        "writers.shards", "writers.files.attributes", "writers.files.copying",
        "writers.files.partial", "writers.files.whole_file",
    }  # fmt: skip


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
def test_inspect_imports_neither_torch_nor_numpy_nor_typer(options):
    modules = modules_after("inspect", EXPORTED, *options)
    assert not modules & (HEAVY | {"typer"})


def test_rich_is_for_terminals():
    assert "rich" in modules_after("inspect", EXPORTED, "--color", "always")


NETWORK = {"http", "ssl", "socket", "_socket", "obstore"}


@pytest.mark.parametrize("command", ["inspect", "verify", "extract-ema"])
def test_nothing_of_the_network_is_imported_for_files_of_this_machine(command, tmp_path):
    """``ckptool.sources.remote`` would import ``socket`` at least."""
    output = ("-o", tmp_path / "ema.safetensors") if command == "extract-ema" else ()
    assert not modules_after(command, EXPORTED, *output) & NETWORK


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

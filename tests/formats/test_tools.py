"""The table of torch's and numpy's functions that act has all that the installed sources define."""

from __future__ import annotations

import ast
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from ckptool.formats.base import NamedGlobal
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.tools import FUNCTIONS_THAT_ACT, MODULES_OF_TORCH
from ckptool.tree.nodes import GlobalRef

ACTING = {"open", "exec", "eval", "compile", "__import__", "FileHandler"}
METHODS = {
    "FileHandler", "Popen", "check_call", "check_output", "chmod", "copytree", "import_module",
    "makedirs", "mkdtemp", "move", "popen", "rename", "rmtree", "savefig", "symlink", "touch",
    "unlink", "urlopen", "urlretrieve", "write_bytes", "write_text",
}  # fmt: skip
OF_MODULES = {"os.remove", "os.system", "pickle.dump", "subprocess.run", "torch.save"}
# They import modules of torch's own.
HARMLESS = {
    "torch._logging._internal._get_module_and_submodules",
    "torch.nn.functional.interpolate",
    "torch.nn.functional.max_pool3d_with_indices",
    "torch.nn.functional.pad",
}


def is_dangerous(module: str, name: str) -> bool:
    named = NamedGlobal(GlobalRef(module, name), called=False, pickle="data.pkl")
    return trust_of(named) == "dangerous"


def acts(function: ast.AST) -> bool:
    """Return whether a function opens a file, starts a program or runs source code itself."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ACTING:
                return True
            if isinstance(node.func, ast.Attribute) and (
                node.func.attr in METHODS or ast.unparse(node.func) in OF_MODULES
            ):
                return True
    return False


def functions(package: str):
    root = Path(find_spec(package).origin).parent
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        body = []
        with suppress(SyntaxError):  # written for a later Python
            body = ast.parse(path.read_bytes()).body
        for node in body:
            if isinstance(node, ast.FunctionDef):
                yield module.removesuffix(".__init__"), node


@pytest.mark.slow  # a look at all sources of torch
@pytest.mark.parametrize("package", ["torch", "numpy", "functorch"])
def test_every_function_that_acts_is_dangerous(package):
    milder = {
        f"{module}.{node.name}"
        for module, node in functions(package)
        if not is_dangerous(module, node.name) and acts(node)
    }
    assert milder <= HARMLESS


@pytest.mark.parametrize("qualname", sorted(FUNCTIONS_THAT_ACT))
def test_a_function_of_the_table_is_dangerous(qualname):
    assert is_dangerous(*qualname.rpartition(".")[::2])


@pytest.mark.parametrize("module", sorted(MODULES_OF_TORCH))
def test_any_name_of_a_module_of_the_table_is_dangerous(module):
    assert is_dangerous(module, "Thing")
    assert is_dangerous(f"{module}.part", "thing")


def test_functions_that_models_hold_are_in_no_table():
    for qualname in ("torch.nn.functional.pad", "torch.nn.functional.relu", "torch._C._nn.gelu",
                     "torch.nn.init.zeros_", "torch.utils.checkpoint.checkpoint", "numpy.clip",
                     "torch._functorch.apis.vmap", "torch.random.manual_seed"):  # fmt: skip
        assert not is_dangerous(*qualname.rpartition(".")[::2])

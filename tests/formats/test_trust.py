"""How far the names in a pickle are trusted: known, unknown, dangerous."""

from __future__ import annotations

import _compat_pickle
import argparse
import collections
import datetime as dt
import pathlib
import pickle
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch

from ckptool.formats.base import NamedGlobal
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.tree.nodes import GlobalRef
from helpers.samples import EVERYWHERE
from helpers.thinned import one_in


def trust(qualname: str, *, called: bool = False) -> str:
    module, _, name = qualname.rpartition(".")
    return trust_of(NamedGlobal(GlobalRef(module, name), called, "data.pkl"))


@pytest.mark.parametrize(
    "qualname",
    [
        "os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval",
        "builtins.getattr", "__builtin__.apply", "sys.exit", "shutil.rmtree", "socket.socket",
        "webbrowser.open", "importlib.import_module", "ctypes.CDLL", "runpy.run_path",
        "pickle.loads", "operator.attrgetter", "functools.reduce", "types.FunctionType",
        "torch.hub.load", "torch.jit.load", "torch.utils.cpp_extension.load",
        "numpy.testing._private.utils.runstring", "multiprocessing.util.spawnv_passfds",
        "os.path.join", "asyncio.unix_events._UnixSubprocessTransport._start", "timeit.timeit",
        "code.InteractiveInterpreter", "pip.main", "builtins.__import__", "io.open",
        "numpy._core.tests.examples.limited_api.setup.limited_api",
        "argparse.FileType", "jinja2.environment.Template", "jinja2.Template", "filelock.FileLock",
        "argparse._os", "collections._sys", "torch._C.PyTorchFileWriter",
        "numpy.lib.format.open_memmap", "networkx.write_gml", "typer.testing.StreamMixer",
        "rich.console.ThemeContext", "mypy.report.Reports",
        "hypothesis.strategies._internal.regex.regex_strategy",
    ],
)  # fmt: skip
@pytest.mark.parametrize("called", [False, True])
def test_what_runs_code_or_reaches_the_system_is_dangerous(qualname, called):
    assert trust(qualname, called=called) == "dangerous"


@pytest.mark.parametrize(
    "qualname",
    [
        "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage",
        "torch.storage.UntypedStorage", "torch.float8_e5m2", "argparse.Namespace",
        "optparse.Values",
        "functools.partial", "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct", "_codecs.encode", "collections.defaultdict",
        "torch.nn.modules.linear.Linear", "torch.optim.adamw.AdamW", "torch.Size",
    ],
)  # fmt: skip
def test_what_training_scripts_save_is_known(qualname):
    assert trust(qualname) == "known"


def test_a_class_that_nobody_knows_is_unknown():
    assert trust("myproject.models.Net") == "unknown"


def test_a_function_that_nobody_knows_is_dangerous_when_it_is_called():
    assert trust("myproject.models.make", called=True) == "dangerous"


def test_a_known_family_is_not_known_when_it_is_called():
    """A class of torch is built as an object; called with arguments, its code would run."""
    assert trust("torch.optim.adamw.AdamW", called=True) == "dangerous"


@pytest.mark.parametrize("qualname", ["os.systems", "ostrich.system", "subprocesses.Popen"])
def test_names_that_only_look_alike_are_unknown(qualname):
    assert trust(qualname) == ("dangerous" if qualname.startswith("os.") else "unknown")


@pytest.mark.parametrize("name", ["Path.touch", "Linear.forward", "OrderedDict.update"])
def test_a_part_of_a_class_is_dangerous(name):
    """``STACK_GLOBAL`` can name methods; no training state needs one."""
    assert trust_of(NamedGlobal(GlobalRef("mymodule", name), False, "data.pkl")) == "dangerous"


SEVERITY = ("known", "unknown", "dangerous")
TRANSLATED = {
    **{
        f"{old}.{name}": f"{new}.{name}"
        for old, new in _compat_pickle.IMPORT_MAPPING.items()
        for name in ("Settings", "run")
    },
    **{".".join(old): ".".join(new) for old, new in _compat_pickle.NAME_MAPPING.items()},
}


@pytest.mark.parametrize("called", [False, True])
def test_a_name_of_python_2_is_trusted_no_more_than_what_python_3_reads(called):
    """Of protocols 0 to 2 ``pickle`` translates it: what looks like a package may be Python's."""
    trusts = {
        old: (trust(old, called=called), trust(new, called=called))
        for old, new in TRANSLATED.items()
    }
    milder = {
        old for old, (one, other) in trusts.items() if SEVERITY.index(one) < SEVERITY.index(other)
    }
    assert not milder


# ---------------------------------------------------------------------------------- in real pickles


def globals_of(obj, ckptool, tmp_path, protocol=2) -> dict[str, dict]:
    path = tmp_path / "object.pt"
    torch.save({"w": torch.ones(2), "object": obj}, path, pickle_protocol=protocol)
    found = ckptool("inspect", path, "--json").json["pickle"]["globals"]
    return {entry["name"]: entry for entry in found}


@dataclass
class Settings:
    """A class of a project."""

    width: int = 3


HONEST = {
    "namespace": argparse.Namespace(lr=1),
    "path": pathlib.PurePosixPath("a/b"),
    "date": dt.date(2026, 1, 1),
    "array": np.arange(3),
    "scalar": np.float32(1),
    "random state": np.random.RandomState(1).get_state(),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1]),
    "set": {1, 2},
    "size": torch.Size([1]),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "module": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize(("name", "protocol"), one_in(3, product(HONEST, (2, 3, 4, 5))))
def test_honest_objects_raise_no_alarm(name, protocol, ckptool, tmp_path):
    found = globals_of(HONEST[name], ckptool, tmp_path, protocol)
    assert {entry["trust"] for entry in found.values()} == {"known"}, found


@pytest.mark.parametrize("protocol", [2, 4])
def test_functions_of_torch_that_layers_hold_raise_no_alarm(protocol, ckptool, tmp_path):
    """Pickles take ``torch.relu`` from ``torch._C``, and ``gelu`` from ``torch._C._nn``."""
    held = [torch.relu, torch.tanh, torch.clamp, torch.nn.functional.gelu]
    found = globals_of(held, ckptool, tmp_path, protocol)
    assert {entry["trust"] for entry in found.values()} == {"known", "unknown"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("sample", EVERYWHERE, ids=lambda sample: sample.__name__)
def test_nothing_that_is_read_is_dangerous_but_what_is(sample, ckptool, tmp_path):
    torch.save(sample(), tmp_path / "sample.pt")
    report = ckptool("inspect", tmp_path / "sample.pt", "--json").json
    dangerous = {e["name"] for e in report["pickle"]["globals"] if e["trust"] == "dangerous"}
    assert all("samples." in name or "enum" in name for name in dangerous), dangerous


def test_an_instance_of_a_projects_class_is_unknown(ckptool, tmp_path):
    found = globals_of(Settings(), ckptool, tmp_path)
    name = f"{Settings.__module__}.Settings"
    assert (found[name]["trust"], found[name]["called"]) == ("unknown", False)


def test_a_name_is_listed_once_with_its_worst_trust(ckptool, tmp_path):
    """Called in one place, only mentioned in another, in either order."""
    called, named = b"cmyproject\nmake\n)R", b"cmyproject\nmake\n"
    for first, second in ((called, named), (named, called)):
        path = tmp_path / "order.pkl"
        path.write_bytes(b"\x80\x02(" + first + second + b"t.")
        entries = ckptool("inspect", path, "--json").json["pickle"]["globals"]
        assert [(e["name"], e["trust"], e["called"]) for e in entries] == [
            ("myproject.make", "dangerous", True)
        ]


def test_a_name_keeps_its_worst_trust_across_pickles(ckptool, tmp_path):
    """The same name in a pickle inside the pickle, called in one of them only."""
    called, named = b"cmyproject\nmake\n)R", b"cmyproject\nmake\n"
    for outer, inner in ((called, named), (named, called)):
        file = legacy_file(b"\x80\x02" + inner + b".")
        size = len(file).to_bytes(4, "little")
        load = b"ctorch.storage\n_load_from_bytes\n(B" + size + file + b"tR"
        (tmp_path / "outer.pkl").write_bytes(b"\x80\x03(" + outer + load + b"t.")
        entries = ckptool("inspect", tmp_path / "outer.pkl", "--json").json["pickle"]["globals"]
        (entry,) = (entry for entry in entries if entry["name"] == "myproject.make")
        assert (entry["trust"], entry["called"]) == ("dangerous", True)


def legacy_file(pickled: bytes) -> bytes:
    """A file of torch before 1.6 without storages, around an object that is pickled already."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    return b"".join([*map(pickle.dumps, head), pickled, pickle.dumps([])])

"""Whether torch's safe loader takes a file is judged by torch, and so is the line that we print."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import functools
import io
import json
import operator
import os
import pathlib
import pickle
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import _weights_only_unpickler, nn
from torch._weights_only_unpickler import _get_allowed_globals

from ckptool.commands.verify import Request, chosen_rules, verify_file
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.pickles.vetted import PLAIN_DATA
from ckptool.formats.pickles.weights_only import (
    ALLOWED,
    Refusal,
    allowing_line,
    as_torch_reads,
    first_refusal,
)
from ckptool.tree.nodes import GlobalRef
from helpers import samples
from helpers.faults import in_pickle, repack
from helpers.paths import ZOO

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_the_table_is_that_of_torch():
    assert _get_allowed_globals().keys() == ALLOWED


def check_of(path):
    report = verify_file(path, Request(chosen_rules({"select": ["CK202"]})))
    (check,) = report.checks
    return check.state, report.findings


def torch_takes(path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 - torch refuses with many
        return False
    return True


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("sample", samples.EVERYWHERE, ids=lambda sample: sample.__name__)
def test_torch_agrees(sample, new, tmp_path):
    if sample is samples.nested_tensor and not new:
        pytest.skip("torch builds it before it has read the sizes, which are anything then")
    path = tmp_path / "sample.pt"
    torch.save(sample(), path, _use_new_zipfile_serialization=new)
    state, _ = check_of(path)
    assert (state == "passed") <= torch_takes(path)  # never called loadable when it is not
    assert (state == "failed") <= (not torch_takes(path))


@pytest.mark.parametrize("sample", [samples.ties, samples.namespace], ids=lambda s: s.__name__)
def test_it_can_be_required(sample, tmp_path, ckptool):
    path = tmp_path / "sample.pt"
    torch.save(sample(), path)
    done = ckptool("verify", path, "--require", "weights-only", "--json")
    assert done.exit_code == int(not torch_takes(path))
    assert ckptool("verify", path, "--rules", "CK202").exit_code == 0  # a note, if nobody requires


def test_a_file_without_pickles_needs_no_such_load(tmp_path, ckptool):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    assert ckptool("verify", tmp_path / "w.safetensors", "--require", "weights-only").exit_code == 0


def test_a_pickle_that_torch_does_not_load_so_is_not_taken(tmp_path, ckptool):
    with (tmp_path / "rng.pkl").open("wb") as file:
        pickle.dump({"epoch": 1}, file)
    done = ckptool("verify", tmp_path / "rng.pkl", "--require", "weights-only", "--json")
    assert (done.exit_code, {f["rule"] for f in done.json["findings"]}) == (1, {"CK202"})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(protocol, tmp_path):
    path = tmp_path / "sample.pt"
    torch.save({"a": torch.ones(2), "b": [1, "x"]}, path, pickle_protocol=protocol)
    expected = "passed" if protocol < 4 else "failed"  # of 4 and 5 torch does not know the frames
    assert check_of(path)[0] == expected
    assert torch_takes(path) == (expected == "passed")


def rows():
    if ZOO is None:
        return []
    samples = json.loads((ZOO / "manifest.json").read_text())["samples"]
    return [row for row in samples if row["loads_with_weights_only"] is not None]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["id"])
def test_the_zoo_agrees(row):
    state, _ = check_of(ZOO / row["file"])
    if state != "not-checked":
        assert (state == "passed") == row["loads_with_weights_only"]


class Local(nn.Module):
    """Not importable from elsewhere under this name by accident."""


LOADABLE = {
    "namespace": lambda: argparse.Namespace(lr=0.1, layers=(1, 2)),
    "numpy": lambda: {"a": np.arange(3.0), "b": np.float64(2.5), "c": np.arange(2, dtype="i2")},
    "path": lambda: pathlib.PurePosixPath("/a/b"),
    "numpy state": lambda: np.random.RandomState(3).get_state(),
}


@pytest.mark.parametrize("name", LOADABLE)
def test_the_line_makes_torch_take_it(name, fresh_torch, tmp_path):
    """In a fresh process: what is allowed stays allowed."""
    path = tmp_path / "sample.pt"
    torch.save(LOADABLE[name](), path)
    state, (found,) = check_of(path)
    assert state == "failed"
    assert not torch_takes(path)
    ran = fresh_torch(pasted(found.remedy, path))
    assert ran.exit_code == 0, ran.printed


def pasted(remedy: str, path: pathlib.Path) -> str:
    """The line as a person pastes it, and what comes after it."""
    return f"{remedy}\nimport torch; torch.load({str(path)!r}, weights_only=True)"


class Mine(nn.Module):
    """A class that nobody has vetted."""


ACTING = {
    "a class of torch": nn.Linear(2, 3),
    "a class of the user": Mine(),
    "a container that calls its factory": collections.defaultdict(list, a=[1]),
    "a prepared call": functools.partial(int, base=2),
    "a function": torch.nn.functional.relu,
    "an optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1),
}


@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("protocol", [2, 4])
def test_only_plain_data_is_ever_allowed(protocol, name, tmp_path):
    """What is allowed for one file is allowed for every other one in the process."""
    path = tmp_path / "sample.pt"
    torch.save({"value": ACTING[name], "at": dt.UTC}, path, pickle_protocol=protocol)
    _, (found,) = check_of(path)
    assert found.remedy.startswith("ckptool convert --safe may make plain data of it, ")
    assert "; do not allow " in found.remedy


def test_what_is_to_be_taken_instead_can_be_taken(tmp_path, ckptool):
    path, output = tmp_path / "sample.pt", tmp_path / "out.safetensors"
    torch.save(nn.Linear(2, 3), path)
    _, (found,) = check_of(path)
    assert "ckptool convert 'FILE#@model'" in found.remedy
    assert ckptool("convert", f"{path}#@model", "-o", output).exit_code == 0


def test_where_no_allowing_helps_that_is_said(tmp_path):
    """An object of a vetted class, of which the file sets elements."""
    path = tmp_path / "sample.pt"
    torch.save({"value": np.ma.masked_array([1.0]), "at": dt.UTC}, path)
    _, (found,) = check_of(path)
    assert found.remedy.startswith(("add_safe_globals does not help", "ckptool convert --safe"))
    assert not torch_takes(path)


# Prints the lines that fail, but not those whose modules other versions of Python or numpy have.
EACH_LINE = """
import importlib
for module, line in {lines!r}:
    try:
        importlib.import_module(module)
    except ImportError:
        continue
    try:
        exec(line)
    except Exception as error:
        print("failed:", line, repr(error))
"""


def test_each_name_that_may_be_allowed_is_allowed_by_its_line(fresh_torch):
    names = [as_torch_reads(GlobalRef(*name.rsplit(".", 1))) for name in sorted(PLAIN_DATA)]
    lines = [(name.rpartition(".")[0], allowing_line([name])) for name in names]
    assert len(lines) > 50
    ran = fresh_torch(EACH_LINE.format(lines=lines))
    assert ran.exit_code == 0, ran.printed
    assert "failed:" not in ran.printed


@pytest.mark.parametrize(
    "name", ["a.b; import os", "os.system", "x.__import__('os')", "a.b\nimport os", "nt.remove"]
)
def test_a_name_that_is_code_makes_no_line(name):
    assert allowing_line(["argparse.Namespace", name]) is None


# ------------------------------------------------------------------- what is told can be pasted


class Protocol4:
    """Stands for a state that is saved with protocol 4."""


def weight_norm() -> nn.Module:
    return nn.utils.weight_norm(nn.Linear(2, 3))


def defaultdict_without_items() -> object:
    return {"a": collections.defaultdict(list)}


REMEDIES = {
    **LOADABLE,
    "weight_norm, which a function of the same name hides": weight_norm,
    "getattr": lambda: {"method": operator.methodcaller("lower"), "bound": "a".lower},
    "partial": lambda: functools.partial(int, base=2),
    "an empty defaultdict": defaultdict_without_items,
    "a filled defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "a deque": lambda: collections.deque([1, 2]),
    "an enum": lambda: {"kind": signal.Signals.SIGINT},
    "a date": lambda: {"at": dt.datetime(2024, 1, 2, tzinfo=dt.UTC)},
    "two classes of one name": lambda: [nn.Linear(1, 1), nn.modules.linear.Identity()],
    "a generator of numpy": lambda: np.random.RandomState(3),
    "a new generator of numpy": lambda: np.random.default_rng(3),
    "a numpy scalar": lambda: np.float32(1.5),
    "a slice": lambda: {"slice": slice(1, 2)},
    "a module of modules": lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.GELU()),
    "an optimizer": lambda: torch.optim.AdamW(nn.Linear(1, 1).parameters()),
    "a scheduler's state": lambda: torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), 0.1, 10
    ).state_dict(),
    "a pickled function": lambda: {"f": torch.nn.functional.relu},
    "decimal": lambda: {"d": decimal.Decimal("1.5")},
    "protocol 4": Protocol4,
}


def saved_for_remedy(name: str, path: pathlib.Path) -> pathlib.Path:
    if name == "protocol 4":
        torch.save({"a": torch.ones(2)}, path, pickle_protocol=4)
    else:
        torch.save(REMEDIES[name](), path)
    return path


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_works_when_it_is_pasted(name, fresh_torch, tmp_path):
    """The remedy is a line of Python, after which torch takes the file, or says that none helps."""
    path = saved_for_remedy(name, tmp_path / "sample.pt")
    state, findings = check_of(path)
    if state == "passed":
        assert torch_takes(path)
        return
    remedy = findings[0].remedy
    if "add_safe_globals" in remedy:
        ran = fresh_torch(pasted(remedy, path))
        assert ran.exit_code == 0, (remedy, ran.printed[-500:])
    elif "save it again" in remedy:
        torch.save(torch.load(path, weights_only=False), path)
        assert torch_takes(path)
    else:
        ways = ("add_safe_globals does not help", "ckptool convert --safe", "do not load")
        assert remedy.startswith(ways)
        assert not torch_takes(path)


def test_torchscript_is_sent_to_its_own_loader(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path)
    _, (found,) = check_of(path)
    assert not torch_takes(path)
    assert eval(found.remedy.removeprefix("load it with "), {"torch": torch, "path": path})


def test_a_storage_on_an_unknown_device_loads_as_its_remedy_says(tmp_path):
    path = saved_on(b"gpu", tmp_path / "sample.pt")
    (found,) = verify_file(path, Request(chosen_rules({"select": ["CK124"]}))).findings
    assert not torch_takes(path)
    call = found.remedy.removeprefix("load it with ")
    assert eval(call, {"torch": torch, "path": path})["a"].device.type == "cpu"


def saved_on(device: bytes, path: pathlib.Path) -> pathlib.Path:
    torch.save({"a": torch.ones(2)}, path)
    repack(path, in_pickle(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00" + device))
    return path


def test_strings_of_python_2_load_as_their_remedy_says(tmp_path):
    path = tmp_path / "sample.pt"
    torch.save({"a": 1}, path)
    repack(path, in_pickle(b"X\x01\x00\x00\x00a", b"U\x02\xffa"))
    (found,) = verify_file(path, Request(chosen_rules({"select": ["CK123"]}))).findings
    assert not torch_takes(path)
    call = found.remedy.removeprefix("load it with ")
    assert eval(call, {"torch": torch, "path": path}) == {"\xffa": 1}


def named_like_a(kind: str, state: bytes) -> bytes:
    """A tuple that holds the name of a class, and is given what only its objects take."""
    return b"\x80\x02X" + len(kind).to_bytes(4, "little") + kind.encode() + b"\x85" + state + b"."


LOOKALIKES = {
    "tensor": named_like_a("torch.Tensor", b"(K\x00K\x00))tb"),
    "parameter": named_like_a("torch.nn.parameter.Parameter", b"(K\x00K\x00)tb"),
    "ordered dict": named_like_a("collections.OrderedDict", b"}b"),
    "items": named_like_a("collections.OrderedDict", b"K\x01K\x02s"),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_tuple_is_no_object_whatever_name_it_holds(name):
    content = LOOKALIKES[name]
    with pytest.raises(pickle.UnpicklingError):
        _weights_only_unpickler.load(io.BytesIO(content))
    refusal = first_refusal(content)
    assert refusal is not None
    assert "tuple" in refusal.what


@pytest.mark.parametrize(
    "cls", [collections.UserDict, argparse.Namespace, decimal.Decimal, os.PathLike, os.DirEntry]
)
def test_a_name_is_refused_where_it_stands_unless_it_is_allowed(cls):
    """Those of some modules are refused even then."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    content = f"\x80\x02c{cls.__module__}\n{cls.__qualname__}\n.".encode("latin-1")

    def torch_refuses() -> bool:
        try:
            _weights_only_unpickler.load(io.BytesIO(content))
        except pickle.UnpicklingError:
            return True
        return False

    assert torch_refuses()
    assert first_refusal(content) == Refusal(2, f"the name {name}", name)
    with torch.serialization.safe_globals([cls]):
        assert torch_refuses() == (first_refusal(content, [name]) is not None)


NOT_PLAIN = {
    "a later instruction": b"\x80\x02\x8c\x01a.",
    "a memo without an index": b"\x80\x02}\x94.",
    "a list of protocol 0": b"\x80\x02(l.",
    "a state of a dict": b"\x80\x02}}b.",
    "items of a list": b"\x80\x02]K\x01K\x02s.",
    "a call with a number": b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
    "a call of what a call made": b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    "a persistent id of text": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "a size with items": b"\x80\x02ctorch\nSize\n)\x85RK\x01K\x02s.",
    "a string of Python 2": b"\x80\x02U\x01\xff.",
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_the_reader_passes_nothing_as_plain_that_torch_refuses(name, tmp_path):
    path, content = tmp_path / "sample.pt", NOT_PLAIN[name]
    with pytest.raises(Exception):  # noqa: B017, PT011 - torch raises what it comes to
        _weights_only_unpickler.load(io.BytesIO(content))
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
    kept = path.read_bytes()
    pickle_of_dict = pickle.dumps({"a": 1}, 2)
    assert kept.count(pickle_of_dict) == 1
    path.write_bytes(kept.replace(pickle_of_dict, content))
    try:
        checkpoint = open_checkpoint(path)
    except CkptError:
        return
    with checkpoint:
        assert not all(read.is_plain for read in checkpoint.pickles)


def test_an_ordinary_pickle_is_plain(tmp_path):
    path = tmp_path / "sample.pt"
    torch.save({"model": nn.Linear(2, 3).state_dict(), "epoch": 1, "loss": 0.5}, path)
    with open_checkpoint(path) as checkpoint:
        assert [read.is_plain for read in checkpoint.pickles] == [True]


def objections(path) -> list[str]:
    report = verify_file(path, Request(chosen_rules({"select": ["CK122"]})))
    return [found.message for found in report.findings]


def test_a_nested_tensor_in_the_older_container_does_not_pass(tmp_path):
    """Torch builds it before it has read the sizes, which are anything then, by luck the right."""
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    torch.save(samples.nested_tensor(), old, _use_new_zipfile_serialization=False)
    torch.save(samples.nested_tensor(), new)
    assert torch_takes(new)
    assert objections(new) == []
    assert "nested tensor" in objections(old)[0]


class Quantized:
    """Pickles itself as the call that makes a quantized tensor."""

    def __init__(self, *params: object, dtype: torch.dtype = torch.qint8) -> None:
        self.params, self.dtype = params, dtype

    def __reduce__(self):
        untyped = torch.UntypedStorage(6 * self.dtype.itemsize)
        storage = torch.storage.TypedStorage(wrap_storage=untyped, dtype=self.dtype, _internal=True)
        args = (storage, 0, (2, 3), (3, 1), self.params, False, collections.OrderedDict())
        return torch._utils._rebuild_qtensor, args


SCALES, ZEROS = torch.ones(2, dtype=torch.double), torch.zeros(2, dtype=torch.long)
PER_TENSOR, PER_CHANNEL = torch.per_tensor_affine, torch.per_channel_affine
QUANTIZERS = {
    "of a tensor": (PER_TENSOR, 0.5, 1),
    "of a tensor, with an axis": (PER_TENSOR, 0.5, 1, 0),
    "of a tensor, without zero": (PER_TENSOR, 0.5),
    "of a tensor, half a zero": (PER_TENSOR, 0.5, 1.5),
    "of a tensor, a text": (PER_TENSOR, "a", 1),
    "of channels": (PER_CHANNEL, SCALES, ZEROS, 0),
    "of channels, lists": (PER_CHANNEL, [1.0, 2.0], [0, 0], 0),
    "of channels, floats": (torch.per_channel_affine_float_qparams, [1.0, 2.0], [0.5, 0.0], 0),
    "of channels, without axis": (PER_CHANNEL, SCALES, ZEROS),
    "of channels, an axis beyond": (PER_CHANNEL, SCALES, ZEROS, 2),
    "of channels, a negative axis": (PER_CHANNEL, SCALES, ZEROS, -2),
    "of channels, the wrong axis": (PER_CHANNEL, SCALES, ZEROS, 1),
    "of channels, too few scales": (PER_CHANNEL, SCALES[:1], ZEROS, 0),
    "of channels, too few zeros": (PER_CHANNEL, [1.0, 2.0], [0], 0),
    "of channels, a list and a tensor": (PER_CHANNEL, [1.0, 2.0], ZEROS, 0),
    "of channels, a table": (PER_CHANNEL, SCALES[:, None], ZEROS, 0),
    "of channels, texts": (PER_CHANNEL, ["a", "b"], [0, 0], 0),
    "of channels, tuples": (PER_CHANNEL, (1.0, 2.0), (0, 0), 0),
    "of a scheme that torch does not build": (torch.per_tensor_symmetric, 0.5, 1),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_torch_agrees_about_quantizers(name, new, tmp_path):
    path = tmp_path / "quantized.pt"
    value = {"w": Quantized(*QUANTIZERS[name])}
    torch.save(value, path, _use_new_zipfile_serialization=new)
    assert (objections(path) == []) == torch_takes(path)

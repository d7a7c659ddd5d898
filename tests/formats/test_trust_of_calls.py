"""A call of a class with plain values is told from a call of a function: CK210 against CK201.

Nothing is looked up, so that names decide: one written like a class, of a package that is neither
Python's nor torch's nor numpy's, which does not say that it acts, given values that reach nothing
outside the file. Whatever else is called stays dangerous.
"""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import pickle
import pkgutil
import re
import zoneinfo
from array import array
from dataclasses import dataclass, is_dataclass
from functools import partial
from http import HTTPStatus
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.pickles.trust import ACTING, GADGET_PACKAGES
from ckptool.formats.pickles.uses import MAX_DATA, MAX_LOOKED
from ckptool.formats.pickles.vetted import LOOKS_UP, VETTED
from ckptool.tree.nodes import GlobalRef
from helpers.thinned import one_in


class Mode(enum.Enum):
    LINEAR = "linear"
    PAIR = (1, 2)


class Text(enum.StrEnum):
    STEPS = "steps"


class Number(enum.IntEnum):
    ONE = 1


class Bits(enum.Flag):
    A = 1
    B = 2


class Typed(enum.Enum):
    FLOAT = torch.float32
    PLACE = PurePosixPath("data")


class Outer:
    class Mode(enum.Enum):
        X = 1

    @dataclass
    class Settings:
        width: int = 3


class Parsed:
    """Reduces to a call of its class with values of all plain kinds."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __reduce__(self) -> tuple:
        return Parsed, ({"a": [1, (2.0, None)]}, {1}, b"x", torch.ones(2), Mode.LINEAR)


MEMBERS = {
    "an enum": Mode.LINEAR,
    "an enum of tuples": Mode.PAIR,
    "an enum of text": Text.STEPS,
    "an enum of numbers": Number.ONE,
    "flags": Bits.A | Bits.B,
    "an enum of element types": Typed.FLOAT,
    "an enum of paths": Typed.PLACE,
    "an enum in a class": Outer.Mode.X,
    "an object of plain values": Parsed(),
}

VETTED_OBJECTS = {
    "a status": HTTPStatus.OK,
    "flags of re": re.IGNORECASE | re.MULTILINE,
    "a time zone": zoneinfo.ZoneInfo("UTC"),
    "a time in a zone": dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    "a network": ipaddress.ip_network("10.0.0.0/8"),
    "an array": array("f", [1.0]),
    "a masked array": np.ma.array([1, 2]),
    "records": np.rec.array([(1, 2.0)]),
    "numpy's random state": np.random.RandomState(1).get_state(),
    "a generator of numpy": np.random.default_rng(1),
    "the state of a scaler": torch.amp.grad_scaler.OptState.READY,
    "a jagged tensor": torch.nested.nested_tensor(
        [torch.ones(1), torch.ones(2)], layout=torch.jagged
    ),
    "a scheme": torch.per_tensor_symmetric,
}


@pytest.fixture
def verify(ckptool, tmp_path):
    """The exit code and the findings of the family for an object beside weights."""

    def verify(obj, *options, protocol=2):
        path = tmp_path / "object.pt"
        torch.save({"w": torch.ones(2), "obj": obj}, path, pickle_protocol=protocol)
        torch.load(path, weights_only=False)  # the judge: it loads
        return asked(path, *options)

    def asked(path, *options):
        output = ckptool("verify", path, "--json", *options)
        found = [f for f in output.json["findings"] if f["rule"] in {"CK201", "CK203", "CK210"}]
        return output.exit_code, found

    verify.file = asked
    return verify


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_class_called_with_plain_values_is_a_warning(name, protocol, verify):
    code, found = verify(MEMBERS[name], protocol=protocol)
    (warned,) = [f for f in found if f["rule"] == "CK210"]
    assert (code, warned["severity"]) == (0, "warning")
    assert f"{type(MEMBERS[name]).__qualname__}(" in warned["message"]
    assert "CK201" not in {f["rule"] for f in found}


def test_it_is_told_once_for_all_classes_with_their_places(verify):
    _, found = verify({"a": Mode.LINEAR, "b": [Text.STEPS], "c": Number.ONE, "d": Bits.A,
                       "e": Outer.Mode.X})  # fmt: skip
    (warned,) = [f for f in found if f["rule"] == "CK210"]
    assert warned["address"] == "obj/a"
    assert "5 names written like classes" in warned["message"]
    assert "Text('steps') at obj/b/0" in warned["message"]
    assert "and 1 more" in warned["message"]


def test_required_to_be_safe_it_fails(verify):
    code, found = verify(Mode.LINEAR, "--require", "safe")
    assert code == 1
    assert {f["severity"] for f in found} == {"error"}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", VETTED_OBJECTS)
def test_vetted_objects_pass_as_safe(name, protocol, verify):
    code, found = verify(VETTED_OBJECTS[name], "--require", "safe", protocol=protocol)
    assert [f for f in found if "getattr" not in f["message"]] == []
    assert code == 0 or found  # a look-up of a class's part is unknown, not dangerous
    assert "CK201" not in {f["rule"] for f in found}


def test_safe_does_not_mean_that_weights_only_takes_it(verify, ckptool, tmp_path):
    """It means that nothing dangerous or unknown is named: CK202 is a note of its own."""
    assert verify(np.random.RandomState(1).get_state(), "--require", "safe")[0] == 0
    note = ckptool("verify", tmp_path / "object.pt", "--json").json["findings"]
    assert ("CK202", "info") in {(f["rule"], f["severity"]) for f in note}


# ------------------------------------------------------------------------------- what stays danger


def call(qualname: str, *args: bytes) -> bytes:
    module, _, name = qualname.rpartition(".")
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR"


TEXT = b"Vx\n"
ONE = b"K\x01"
# Each acts on plain values as soon as a loader calls it, though it is written like a class.
ACTS = {
    "tensorflow._api.v2.compat.v1.gfile.DeleteRecursively": b"V/home/u\n",
    "win32api.WinExec": b"Vcalc.exe\n",
    "win32api.Beep": ONE + ONE,
    "pythoncom.CoCreateGuid": b"",
    "win32com.client.Dispatch": TEXT,
    "wx.Execute": TEXT,
    "wx.Kill": ONE,
    "caffe2.python.workspace.RunOperatorOnce": TEXT,
    "cv2.FileStorage": TEXT + ONE,
    "netCDF4.Dataset": TEXT + b"Vw\n",
    "torchvision.datasets.MNIST": TEXT + b"I01\nNNI01\n",
    "otherlib.datasets.CIFAR10": TEXT,
    "onnxruntime.InferenceSession": TEXT,
    "pyspark.SparkContext": b"",
    "webdataset.ShardWriter": TEXT,
    "torchaudio.io.StreamWriter": TEXT,
    "mlagents_envs.environment.UnityEnvironment": TEXT,
    "keras.layers.Lambda": TEXT,
    "keras.src.layers.core.lambda_layer.Lambda": TEXT,
    "pyarrow.OSFile": TEXT + b"Vw\n",
    "jinja2.Template": TEXT,
    "envoy.Command": TEXT,
    "boto3.Session": b"",
    "test.regrtest.Main": TEXT,
    "test.archiver_tests.OverwriteTests": TEXT,
    # of packages that no list has: by what the name says
    "nolib.RunOperator": TEXT,
    "nolib.WinExec": TEXT,
    "nolib.DeleteRecursively": TEXT,
    "nolib.LoadModel": TEXT,
    "nolib.SetHook": TEXT,
    "nolib.GetURL": TEXT,
    "nolib.ExecuteMode": TEXT,
    "nolib.InferenceSession": TEXT,
    "nolib.ShardWriter": TEXT,
    "nolib.HTTPClient": TEXT,
    "nolib.SQLDatabase": TEXT,
    "nolib.UnityEnvironment": TEXT,
}
# What no member of an enum has for its value, given to a name that says nothing.
REACHING = (
    "/home/u", "a/b", "C:x", "..", ".bashrc", "~root", "weights.pt", "calc.exe", "a\\b",
    "http://x", "touch canary", "a\tb", "id;id", "$HOME", "a|b", "__import__('os')", "x" * 101,
    "run.safetensors",
)  # fmt: skip
PLAIN = ("linear", "adamw_torch_fused", "v1.5", "cuda:0", "recall@5", "fp16-mixed", "", "+", "<=")
SAYS_A_MODE = ("SaveStrategy", "LoadMode", "RunType", "OptimizerNames", "SchedulerType", "Head")
MAKE = b"cmyproject\nmake\n"
STAYS = {
    "a function": call("myproject.make", TEXT),
    "a function with a leading underscore": call("myproject._rebuild", TEXT),
    "a class of Python's": call("io.BytesIO", TEXT),
    "a class of torch's": call("torch.optim.adamw.AdamW", TEXT),
    "a class of numpy's": call("numpy.memmap", TEXT),
    "a class of a package that acts": call("paramiko.ProxyCommand", TEXT),
    "a class that another module hands out": call("somelib.compat.Popen", TEXT),
    "a package that evaluates text": call("sympy.Integer", TEXT),
    "a class given a function": call("myproject.Net", MAKE),
    "a class given a function in a dict": call("myproject.Net", b"}" + TEXT + MAKE + b"s"),
    "a class given an object that holds one": call(
        "myproject.Net", b"cmyproject\nOther\n)\x81}Vhook\n" + MAKE + b"sb"
    ),
    "a class given a call prepared": call("myproject.Net", call("functools.partial", MAKE)),
    "a class given a default factory": call(
        "myproject.Net", call("collections.defaultdict", MAKE)
    ),
    "a class given a method": call(
        "myproject.Net", call("builtins.getattr", b"cmyproject\nOther\n", b"Vrun\n")
    ),
    "a class called by way of a known function": call(
        "copyreg._reconstructor", b"cmyproject\nNet\n", b"cmyproject\nBase\n", TEXT
    ),
    "a method": b"\x8c\x09myproject\x8c\x08Net.load\x93(" + TEXT + b"tR",
    "a part of a class of torch's": b"\x8c\x05torch\x8c\x0aTensor.Abc\x93(" + TEXT + b"tR",
    "a class given text that the pickle decodes": call(
        "myproject.Net", call("builtins.str", b"C\x08+AC8-tmpVutf-7\n")
    ),
    "a class given text by numpy": call("myproject.Net", call("numpy.str_", b"Vrun\n")),
    "a class given text by copyreg": call(
        "myproject.Net",
        call("copyreg._reconstructor", b"cnumpy\nstr_\ncbuiltins\nstr\n", b"Vrun\n"),
    ),
    "a class given an own object": call(
        "myproject.Net", b"ctorch.utils.data.dataset\nSubset\n)\x81}Vindices\n]sb"
    ),
    "more than a look of its arguments": call(
        "myproject.Net", b"(" + b"K\x01" * (MAX_DATA + 1) + b"l"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_everything_else_that_is_called_is_dangerous(name, verify, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04}Vepoch\nK\x03sVobj\n" + STAYS[name] + b"s.")
    code, found = verify.file(path)
    assert code == 1
    assert "CK201" in {f["rule"] for f in found}


def rules_of(verify, tmp_path, body):
    path = tmp_path / "called.pkl"
    path.write_bytes(b"\x80\x04}Vepoch\nK\x03sVobj\n" + body + b"s.")
    code, found = verify.file(path)
    return code, {f["rule"] for f in found}


def unicode(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize("qualname", ACTS)
def test_a_name_that_acts_is_dangerous_however_it_is_written(qualname, verify, tmp_path):
    assert rules_of(verify, tmp_path, call(qualname, ACTS[qualname])) == (1, {"CK201"})


@pytest.mark.parametrize(
    ("value", "shape"),
    [(value, "alone") for value in REACHING]
    + one_in(4, product(REACHING, ("in a tuple", "in a dict", "in bytes"))),
)
def test_text_that_reaches_out_of_the_file_is_no_plain_value(value, shape, verify, tmp_path):
    text = unicode(value)
    given = {
        "alone": text,
        "in a tuple": ONE + text + b"\x86",
        "in a dict": b"}" + text + ONE + b"s",
        "in bytes": b"C" + bytes([len(value)]) + value.encode(),
    }[shape]
    assert rules_of(verify, tmp_path, call("nolib.Color", given)) == (1, {"CK201"})


@pytest.mark.parametrize(("name", "value"), one_in(4, product(SAYS_A_MODE, PLAIN)))
def test_members_of_enums_stay_a_warning(name, value, verify, tmp_path):
    assert rules_of(verify, tmp_path, call(f"nolib.{name}", unicode(value))) == (0, {"CK210"})


@pytest.mark.parametrize(
    "qualname", ["tensorflow.ListWrapper", "keras.layers.Lambda", "torchvision.datasets.MNIST"]
)
def test_objects_of_packages_that_act_are_unknown_where_nothing_is_called(
    qualname, verify, tmp_path
):
    module, _, name = qualname.rpartition(".")
    body = f"c{module}\n{name}\n)\x81".encode("latin-1") + b"}" + TEXT + ONE + b"sb"
    assert rules_of(verify, tmp_path, body) == (0, {"CK203"})


@pytest.mark.parametrize("protocol", [2, 4])
def test_torchs_way_to_reduce_is_vetted(protocol, verify):
    code, found = verify(torch.distributed.ReduceOp.RedOpType.MAX, protocol=protocol)
    assert code == 0
    assert {f["rule"] for f in found} <= {"CK203"}  # the look-up of the class


@pytest.mark.parametrize("order", [1, -1])
def test_one_call_with_more_than_values_decides(order, verify, tmp_path):
    calls = [call("myproject.Net", TEXT), call("myproject.Net", MAKE)][::order]
    path = tmp_path / "both.pkl"
    path.write_bytes(b"\x80\x02(" + b"".join(calls) + b"t.")
    code, found = verify.file(path)
    assert code == 1
    assert any("myproject.Net" in f["message"] for f in found if f["rule"] == "CK201")


def test_looking_at_arguments_takes_bounded_time():
    """One list of a thousand values, given to many classes: past the bound none counts as plain."""
    builder = TorchBuilder(lambda _key, _nbytes: None)
    shared = list(range(MAX_DATA - 24))
    for number in range(2 * MAX_LOOKED // len(shared)):
        builder.call(GlobalRef("p", f"C{number}"), (shared,))
    assert builder.looked <= MAX_LOOKED + MAX_DATA
    assert GlobalRef("p", "C0") not in builder.given_more
    assert GlobalRef("p", f"C{number}") in builder.given_more


# --------------------------------------------------------------------------------- the vetted names


@pytest.mark.parametrize("qualname", [n for n, row in VETTED.items() if row.why == LOOKS_UP])
def test_vetted_enums_are_enums_that_only_look_up(qualname):
    found = pkgutil.resolve_name(qualname)
    if not isinstance(found, type) or is_dataclass(found):
        pytest.fail("no class of members")
    if hasattr(found, "__members__") and found.__module__ == "torch._C._distributed_c10d":
        made = found.__new__(found)  # of pybind11: its state is the member's number
        made.__setstate__(0)
        assert made == found.SUM
        with pytest.raises(TypeError):
            found("touch canary")
        return
    assert issubclass(found, enum.Enum)
    base = enum.Flag if issubclass(found, enum.Flag) else enum.Enum
    own = found._missing_.__func__
    assert own is base._missing_.__func__ or found.__module__ == "http" or own.__module__ == "enum"


def test_classes_that_act_begin_with_a_capital_and_packages_are_names():
    """Otherwise the row would do nothing."""
    assert all(name[0].isupper() for name in ACTING)
    assert all(part.isidentifier() for name in GADGET_PACKAGES for part in name.split("."))


def test_the_samples_are_what_pickle_writes():
    """The calls above are those of real pickles: an enum in a class is looked up by getattr."""
    assert b"getattr" in pickle.dumps(Outer.Mode.X, protocol=2)
    assert partial(print).func is print
    assert Path("a").name == "a"

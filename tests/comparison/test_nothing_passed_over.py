"""No two files that differ in content are called equal, whatever it is that differs."""

from __future__ import annotations

import pickletools
import zipfile
from collections import defaultdict, deque
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckptool.commands.diff import DiffOptions, diff
from ckptool.errors import CkptError
from helpers.samples import (
    History,
    NamedTensor,
    Phase,
    Settings,
    TinyNet,
    Tracker,
    module_and_average,
)
from helpers.samples import collections as containers
from helpers.thinned import slow


def saved(path, tree):
    torch.save(tree, path)
    return str(path)


def differ(tmp_path, one, other, *, strict=False):
    a, b = saved(tmp_path / "a.pt", one), saved(tmp_path / "b.pt", other)
    assert diff(a, a, DiffOptions(strict=strict)).equal
    return not diff(a, b, DiffOptions(strict=strict)).equal


def net(change=lambda module: None):
    torch.manual_seed(0)
    module = TinyNet()
    change(module)
    return module


def tensor(**attributes):
    made = torch.nn.Parameter(torch.ones(2))
    made.__dict__.update(attributes)
    return made


def circle(up):
    inner: dict = {}
    middle, outer = {"inner": inner}, {}
    outer["middle"] = middle
    inner["up"] = middle if up == 1 else outer
    return outer


def nested(value):
    for _ in range(8):
        value = (value,)
    return {value}


def tracker(best):
    made = Tracker({"best": 0})
    made.best = best
    return made


def table(fields):
    return np.zeros(2, dtype=fields)


ROWS = {
    "a nested setting of a module": (net(), net(lambda m: m.config.update(width=4))),
    "a buffer that no state dict has": (net(), net(lambda m: m.grid.add_(1))),
    "a setting of a module in a module": (net(), net(lambda m: setattr(m.norm, "note", [{}]))),
    "a hook": (net(), net(lambda m: m.encoder.register_forward_hook(print))),
    "an absent parameter": (net(), net(lambda m: m.register_parameter("more", None))),
    "the length of a deque": (deque([1], 5), deque([1], 6)),
    "the default of a dict": (defaultdict(list, a=1), defaultdict(dict, a=1)),
    "deep in a set": (nested(1), nested(2)),
    "an object in a set": ({Phase.WARMUP}, {Phase.STEADY}),
    "a tensor in a set": ({torch.ones(2)}, {torch.zeros(2)}),
    "a key that is no text": ({1: 0}, {"1": 0}),
    "a key that is bytes": ({b"k": 0}, {"k": 0}),
    "a list and a dict": (["x", "y"], {"0": "x", "1": "y"}),
    "the end of a long key": ({("x" * 300 + "a",): 0}, {("x" * 300 + "b",): 0}),
    "an object as a key": ({Phase.WARMUP: 0}, {Phase.STEADY: 0}),
    "which ancestor a circle closes at": (circle(1), circle(2)),
    "an attribute of a tensor": (tensor(quant_type=2), tensor(quant_type=3)),
    "names in a structured array": (table([("a", "f4"), ("b", "i4")]),
                                    table([("b", "f4"), ("a", "i4")])),
    "an attribute named as an item": (tracker(1), tracker(2)),
    "a state that is no dict": (SimpleNamespace(s={1}), SimpleNamespace(s={2})),
    "keys of a long table": (dict.fromkeys(range(140000), 0),
                             {str(i): 0 for i in range(140_000)}),
}  # fmt: skip


@pytest.mark.parametrize("what", ROWS)
def test_what_differs_is_seen(what, tmp_path):
    one, other = ROWS[what]
    assert differ(tmp_path, {"x": one}, {"x": other})


def test_versions_noted_in_a_state_dict_count_strictly(tmp_path):
    one, other = net().state_dict(), net().state_dict()
    other._metadata["norm"]["version"] = 1
    assert not differ(tmp_path, one, other)
    assert differ(tmp_path, one, other, strict=True)


def test_metadata_of_safetensors_counts_strictly(tmp_path):
    a, b = (str(tmp_path / f"{name}.safetensors") for name in "ab")
    save_file({"w": torch.ones(2)}, a, {"step": "1"})
    save_file({"w": torch.ones(2)}, b, {"step": "2"})
    assert diff(a, b).equal
    assert not diff(a, b, DiffOptions(strict=True)).equal


def test_modules_shared_and_copied_are_equal(tmp_path):
    layer, copies = torch.nn.Dropout(0.1), [torch.nn.Dropout(0.1) for _ in range(2)]
    shared = torch.nn.Sequential(layer, layer)
    assert not differ(tmp_path, {"net": shared}, {"net": torch.nn.Sequential(*copies)})


# ----------------------------------------------------------------------------- any single constant

FLIPPED = {"BININT1": 1, "BININT2": 1, "BININT": 1, "BINFLOAT": 3,
           "BINUNICODE": -1, "SHORT_BINUNICODE": -1}  # fmt: skip


def mutants(data):
    """Yield what was there, and the pickle with one number or text changed in one bit."""
    ops = [*pickletools.genops(data)]
    for (op, value, at), (_, _, end) in pairwise(ops):
        if op.name in FLIPPED and value != "":
            where = (at if FLIPPED[op.name] > 0 else end) + FLIPPED[op.name]
            yield value, data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]


def rewritten(path, change, step):
    """Write every ``step``-th file that is ``path`` but for one constant of its pickle."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    for value, data in islice(mutants(records[name]), 0, None, step):
        with zipfile.ZipFile(change, "w") as archive:
            for each, content in (records | {name: data}).items():
                archive.writestr(each, content)
        yield value


HARMLESS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def objects():
    return {"settings": Settings(5, ["a"]), "phase": Phase.WARMUP, "history": History([1, 2]),
            "tracker": tracker(1), "deque": deque([1.5], 9), "size": torch.Size([2, 3]),
            "args": SimpleNamespace(lr=0.5, inner=SimpleNamespace(deep={"x": (1, {"y": 2})})),
            "tensor": torch.ones(2).as_subclass(NamedTensor)}  # fmt: skip


@pytest.mark.parametrize("step", [7, slow(1)])
@pytest.mark.parametrize("make", [objects, containers, net, module_and_average])
def test_every_constant_of_a_pickle_counts(make, step, tmp_path):
    """But for the strides of dimensions of one element, and the names of what is empty."""
    path, changed = saved(tmp_path / "a.pt", make()), tmp_path / "b.pt"
    unseen = []
    for value in rewritten(path, changed, step):
        try:
            if diff(path, str(changed), DiffOptions(strict=True)).equal:
                unseen.append(value)
        except CkptError:
            continue
    assert [value for value in unseen if not str(value).endswith(HARMLESS)] in ([], [1], [1] * 2)

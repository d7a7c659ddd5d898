"""Bytes of the slot that something else views, wherever a loader keeps it: refused, and named."""

from __future__ import annotations

import collections
import functools
import types
from argparse import Namespace

import numpy as np
import pytest
import torch

from helpers.containers import AVERAGE, LEGACY, MODEL, PICKLE, TAR, ZIP
from helpers.making import average_of, weights

SLOT = "stem.weight"


def _with(obj, tensor):
    obj.note = tensor
    return obj


def _module(*, buffer=None, **attributes):
    module = torch.nn.Linear(1, 1, bias=False)
    if buffer is not None:
        module.register_buffer("cache", buffer, persistent=False)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _array(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


# What the file holds under ``x``, made of a tensor of the slot.
HIDDEN = {
    "a value": lambda t: t,
    "a view": lambda t: [t[1:]],
    "a parameter": torch.nn.Parameter,
    "a storage": lambda t: torch.storage.TypedStorage(
        wrap_storage=t.untyped_storage(), dtype=t.dtype, _internal=True
    ),
    "a set": lambda t: {t},
    "a frozenset of pairs": lambda t: frozenset({("a", t)}),
    "a key": lambda t: {t: 1},
    "a part of a key": lambda t: {("a", ("b", t)): 1},
    "a key in a set": lambda t: {1: {("a", t)}},
    "an attribute of a parameter": lambda t: _with(torch.nn.Parameter(torch.ones(2)), t),
    "an attribute of a tensor": lambda t: _with(torch.ones(2), {"deep": [t]}),
    "an attribute of a dict": lambda t: _with(collections.OrderedDict(a=1), t),
    "an attribute of an object": lambda t: Namespace(note=t),
    "an argument of a partial": lambda t: functools.partial(len, t),
    "an argument by name": lambda t: functools.partial(print, sep=(1, {t})),
    "a default factory": lambda t: collections.defaultdict(functools.partial(len, t)),
    "a key of a counter": lambda t: collections.Counter({t: 1}),
    "a deque": lambda t: collections.deque([{t}], maxlen=3),
    "a numpy array of objects": lambda t: _array({t}, 1),
    "a numpy array of tensors": _array,
    "an attribute of a module": lambda t: _module(cache=t),
    "a buffer that is not persistent": lambda t: _module(buffer=t),
    "a list of a module": lambda t: _module(notes=[t]),
    "a slice": lambda t: slice(0, t),
    "a namespace": lambda t: types.SimpleNamespace(note={t: t}),
    "an exception": lambda t: ValueError("a", t),
    "values of a sparse tensor": lambda t: torch.sparse_coo_tensor(
        [[0, 1]], t.view(-1)[:2], (3,), check_invariants=True
    ),
}  # fmt: skip
ANY_CONTAINER = ("a value", "a set", "a key", "an attribute of a dict", "a storage")
CASES = [
    *((name, ZIP) for name in HIDDEN),
    *((name, LEGACY) for name in ANY_CONTAINER),
    *((name, TAR) for name in ANY_CONTAINER[:-1]),
    *((name, PICKLE) for name in ANY_CONTAINER[:-1]),
]


@pytest.mark.parametrize(("name", "container"), CASES, ids=str)
def test_bytes_that_something_else_views_stay(name, container, ckptool, tmp_path):
    model = weights()
    path, output = tmp_path / f"last{container.suffix}", tmp_path / f"out{container.suffix}"
    content = {MODEL: model, AVERAGE: average_of(model), "x": HIDDEN[name](model[SLOT])}
    container.write(path, content)
    done = ckptool("promote-ema", path, "-o", output, "--json")
    assert done.exit_code == 2
    error = done.json["error"]
    assert error["code"] == "unsupported"
    assert "1 tensor elsewhere views the bytes that would change: x" in error["message"]
    assert "--allow-shared" in error["hint"]
    assert not output.exists()
    shared = ckptool("promote-ema", path, "-o", output, "--json", "--allow-shared").json["shared"]
    assert len(shared) == 1
    assert shared[0].startswith("x")

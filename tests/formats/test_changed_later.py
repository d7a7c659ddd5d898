"""Values that a pickle changes after it has put them somewhere; torch is the judge."""

from __future__ import annotations

import struct

import pytest
import torch

from ckptool.errors import DamagedError
from ckptool.formats.pickles.budget import Budget
from ckptool.formats.pickles.states import States
from ckptool.tree.nodes import Opaque
from helpers.judge import assert_reads_like
from helpers.opcodes import (
    HOOKS,
    NONE,
    TRUE,
    attributes,
    build,
    call,
    dct,
    integer,
    items,
    name,
    new,
    row,
    tensor,
    text,
    tup,
    zipped,
)

NUMEL = 4
RECORDS = {key: struct.pack("<4f", *(int(key) + n / 8 for n in range(NUMEL))) for key in "01239"}
SEQUENTIAL = "torch.nn.modules.container.Sequential"


def t(key: str) -> bytes:
    return tensor(key, NUMEL)


def kept(value: bytes) -> bytes:
    """The value, in the memo at 200."""
    return value + b"q\xc8"


AGAIN = b"h\xc8"
STATE = kept(attributes(w=t("1"), v=t("2")))
SET = AGAIN + items((text("w"), t("9")))
APPENDED = AGAIN + t("9") + b"a"


def module(**parts: bytes) -> bytes:
    empty = {"_parameters": HOOKS, "_buffers": HOOKS, "_modules": HOOKS}
    return attributes(training=TRUE, **(empty | parts))


def of_path(cls: str, *parts: str) -> bytes:
    return call(f"pathlib.{cls}", *map(text, parts))


# What lies under "a", and then under "b".
READ = {
    "the state of an object": (build(new("argparse.Namespace"), STATE), SET),
    "an empty state": (
        build(new("argparse.Namespace"), kept(b"}")), SET,
    ),
    "the state of two objects": (
        row(build(new("argparse.Namespace"), STATE), build(new("argparse.Namespace"), AGAIN)), SET,
    ),
    "the state of a module": (
        build(new(SEQUENTIAL), kept(module(_parameters=HOOKS + items((text("w"), t("1")))))),
        AGAIN + items((text("_parameters"), HOOKS + items((text("w"), t("9"))))),
    ),
    "the slots of an object": (
        build(new("argparse.Namespace"), tup(attributes(v=t("2")), kept(attributes(w=t("1"))))),
        SET,
    ),
    "a second state": (
        build(build(new("argparse.Namespace"), STATE), attributes(v=t("3"))), SET,
    ),
    "the state of a partial": (
        build(
            call("functools.partial", name("builtins.len"), t("1")),
            tup(name("builtins.len"), tup(t("2")), attributes(), NONE),
        ),
        NONE,
    ),
    "a dict that was copied": (call("collections.OrderedDict", STATE), SET),
    "a list that was copied": (call("builtins.tuple", kept(row(t("1")))), APPENDED),
    "a full deque": (call("collections.deque", row(t("1"), t("2"), t("3")), integer(2)), NONE),
    "a deque that gets more": (
        kept(call("collections.deque", row(t("1"), t("2")), integer(2))), APPENDED,
    ),
    "a deque of nothing": (kept(call("collections.deque", b"]", integer(0))), APPENDED),
    "paths that are one": (
        dct((of_path("PosixPath", "w"), t("1")), (of_path("PosixPath", "./w/"), t("9"))), NONE,
    ),
    "paths that are one in two classes": (
        dct((of_path("PosixPath", "w"), t("1")), (of_path("PurePosixPath", "w"), t("9"))), NONE,
    ),
    "an absolute path in another": (dct((of_path("PosixPath", "a", "/w"), t("1"))), NONE),
    "paths of two systems": (
        dct((of_path("PosixPath", "w"), t("1")), (of_path("PureWindowsPath", "w"), t("9"))), NONE,
    ),
    "paths of Windows in two cases": (
        dct((of_path("PureWindowsPath", "w"), t("1")), (of_path("PureWindowsPath", "W"), t("9"))),
        NONE,
    ),
    "names that are a dict": (
        build(new(SEQUENTIAL), module(
            _buffers=HOOKS + items((text("w"), t("1")), (text("v"), t("2"))),
            _non_persistent_buffers_set=dct((text("v"), NONE)),
        )),
        NONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("a", "b"), READ.values(), ids=READ)
def test_values_are_those_that_torch_has(a, b, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(zipped(dct((text("a"), a), (text("b"), b)), RECORDS))
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_the_arguments_of_an_exception_are_those_that_were_set_last(ckptool, tmp_path):
    path = tmp_path / "model.pt"
    error = build(call("builtins.ValueError", t("1")), attributes(args=tup(t("2"))))
    path.write_bytes(zipped(dct((text("a"), error)), RECORDS))
    assert torch.load(path, weights_only=False)["a"].args[0].tolist() == [2, 2.125, 2.25, 2.375]
    (entry,) = ckptool("inspect", path, "--stats", "--json").json["entries"]
    assert entry["address"] == "a/args/0"
    assert entry["stats"]["max"] == 2.375


REPLACING = {
    "attributes as a whole": attributes(__dict__=attributes(w=t("9"))),
    "the class": attributes(__class__=name("types.SimpleNamespace")),
}


@pytest.mark.parametrize("slots", REPLACING.values(), ids=REPLACING)
def test_a_state_that_replaces_an_object_is_refused(slots, ckptool, tmp_path):
    path = tmp_path / "model.pt"
    obj = build(build(new("argparse.Namespace"), STATE), tup(NONE, slots))
    path.write_bytes(zipped(dct((text("a"), obj)), RECORDS))
    done = ckptool("inspect", path, "--json")
    assert done.exit_code == 2
    assert "replaces all attributes or the class" in done.json["error"]["message"]


CHANGED = {
    "a state": (build(new("torch.nn.modules.linear.Identity"), STATE), SET),
    "an argument": (call("collections.OrderedDict", STATE), SET),
    "a list": (call("collections.deque", kept(row(t("1")))), APPENDED),
}


@pytest.mark.parametrize(("a", "b"), CHANGED.values(), ids=CHANGED)
def test_what_a_new_pickle_would_give_back_otherwise_is_not_written(a, b, ckptool, tmp_path):
    path, out = tmp_path / "model.pt", tmp_path / "out.pt"
    path.write_bytes(zipped(dct((text("a"), a), (text("b"), b)), RECORDS))
    done = ckptool("convert", path, "--safe", "-o", out, "--json")
    assert done.exit_code == 2
    assert "after it was given to an object" in done.json["error"]["message"]
    assert not out.exists()


def test_copies_of_states_are_counted():
    """A million objects may share one state, and each needs a copy when it is changed."""
    budget = Budget()
    states = States(lambda parts: budget.count_copies(sum(map(len, parts))))
    shared = dict.fromkeys(range(10_000))
    objects = [Opaque("a.B") for _ in range(10_000)]
    for obj in objects:
        obj.state = states.set(obj, shared)
    assert all(obj.state is shared for obj in objects)
    with pytest.raises(DamagedError, match="copies the same data again and again"):
        states.keep(shared)

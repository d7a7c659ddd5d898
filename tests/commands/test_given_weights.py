"""Weights that a loader would give to calls: no command takes them, and torch shows why."""

from __future__ import annotations

import os
import random
import struct

import pytest
import torch

from ckptool.contents.given import refuse_any_given
from ckptool.errors import UnsupportedError
from ckptool.formats import open_checkpoint
from helpers.opcodes import (
    HOOKS,
    TRUE,
    attributes,
    build,
    call,
    dct,
    integer,
    items,
    new,
    row,
    storage,
    tensor,
    text,
    view,
    zipped,
)

NUMEL = 64
_DRAWN = random.Random(5)
_BASE = [[_DRAWN.gauss(0, 3) for _ in range(NUMEL)] for _ in range(3)]
RECORDS = {
    str(k): struct.pack(f"<{NUMEL}f", *(value + k / 100 for value in _BASE[k % 3]))
    for k in range(10)
}
LAYERS = ("0.weight", "1.weight", "2.weight")


def t(key: str) -> bytes:
    return tensor(key, NUMEL)


def kept(value: bytes) -> bytes:
    """The value, in the memo at 200."""
    return value + b"q\xc8"


AGAIN = b"h\xc8"


def table(first: bytes) -> bytes:
    return dct(*zip(map(text, LAYERS), (first, t("4"), t("5")), strict=True))


def module(cls: str, **parts: bytes) -> bytes:
    empty = {"_parameters": HOOKS, "_buffers": HOOKS, "_modules": HOOKS}
    return build(new(f"torch.nn.modules.{cls}"), attributes(training=TRUE, **(empty | parts)))


def layer(key: str) -> bytes:
    return module("linear.Linear", _parameters=HOOKS + items((text("weight"), t(key))))


def sequential(**more: bytes) -> bytes:
    layers = (text("0"), layer("3")), (text("1"), layer("4")), (text("2"), layer("5"))
    return module("container.Sequential", _modules=HOOKS + items(*layers), **more)


FLOATS = kept(storage(text("3"), NUMEL))
FILLED = "torch._C.TensorBase.fill_"


def method(qualname: str, *args: bytes) -> bytes:
    """A call of a method, which protocol 4 names by STACK_GLOBAL."""
    module, cls, last = qualname.rsplit(".", 2)
    arguments = b"(" + b"".join(args) + b"t"
    return b"\x80\x04" + text(module) + text(f"{cls}.{last}") + b"\x93" + arguments + b"R"


# What lies under "ema", and then under "x".
GIVEN = {
    "a tensor": (table(kept(t("3"))), call("torch.nn.init.zeros_", AGAIN)),
    "a tensor's method": (table(kept(t("3"))), method(FILLED, AGAIN, integer(7))),
    "another tensor of the storage": (table(t("3")), call("torch.nn.init.zeros_", t("3"))),
    "the storage": (
        table(view(FLOATS, NUMEL)), method("torch.storage.TypedStorage.fill_", AGAIN, integer(7)),
    ),
    "the state dict": (
        kept(table(t("3"))), call("_operator.setitem", AGAIN, text(LAYERS[0]), t("9")),
    ),
    "a module": (
        kept(sequential()),
        method("torch.nn.modules.module.Module.load_state_dict", AGAIN, table(t("9"))),
    ),
    "an item of a module": (kept(sequential()), AGAIN + integer(0) + layer("9") + b"s"),
    "an element of a module": (kept(sequential()), AGAIN + layer("9") + b"a"),
    "a value that was thrown away": (
        table(kept(t("3"))), call("torch.nn.init.zeros_", AGAIN) + b"0" + integer(1),
    ),
}  # fmt: skip
COMMANDS = {
    "extract-ema": ("extract-ema", "{}", "-o", "{}.out.pt", "--ema", "ema"),
    "promote-ema": ("promote-ema", "{}", "-o", "{}.out.pt", "--ema", "ema"),
    "convert": ("convert", "{}#ema", "-o", "{}.out.pt"),
    "convert --safe": ("convert", "{}", "--safe", "-o", "{}.out.pt"),
    "average": ("average", "{0}#ema", "{0}#ema", "-o", "{0}.out.pt"),
    "diff": ("diff", "{0}#ema", "{0}#model"),
    "inspect --digests": ("inspect", "{}", "--digests"),
    "inspect --stats": ("inspect", "{}", "--stats"),
}


def write(path, average: bytes, more: bytes) -> None:
    model = dct(*zip(map(text, LAYERS), map(t, "012"), strict=True))
    body = dct((text("model"), model), (text("ema"), average), (text("x"), more))
    path.write_bytes(zipped(body, RECORDS))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("average", "more"), GIVEN.values(), ids=GIVEN)
def test_weights_that_a_call_is_given_are_not_taken(average, more, command, ckptool, tmp_path):
    path = tmp_path / "last.pt"
    write(path, average, more)
    done = ckptool(*(part.format(path) for part in command), "--json")
    assert done.exit_code == 2
    assert "gives the weights to" in done.json["error"]["message"]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("average", "more"), GIVEN.values(), ids=GIVEN)
def test_torch_finds_other_weights_there(average, more, tmp_path):
    path, without = tmp_path / "last.pt", tmp_path / "without.pt"
    write(path, average, more)
    write(without, average, integer(1))
    found, stored = (states(torch.load(each, weights_only=False)) for each in (path, without))
    assert found.keys() != stored.keys() or any(
        not torch.equal(found[name], stored[name]) for name in stored
    )


def states(loaded):
    ema = loaded["ema"]
    return ema if isinstance(ema, dict) else ema.state_dict()


def test_weights_beside_such_a_call_are_taken(ckptool, tmp_path):
    path, out = tmp_path / "last.pt", tmp_path / "out.pt"
    write(path, table(t("3")), call("torch.nn.init.zeros_", t("9")))
    assert ckptool("extract-ema", path, "-o", out, "--names", "ema").exit_code == 0
    wanted = torch.load(path, weights_only=False)["ema"]
    found = torch.load(out)
    assert all(torch.equal(found[name], wanted[name]) for name in LAYERS)


def test_settings_that_a_call_is_given_are_no_weights(ckptool, tmp_path):
    settings = {"lr": 0.1}

    class Call:
        def __reduce__(self):
            return os.putenv, (settings, "x")

    path = tmp_path / "last.pt"
    torch.save({"model": {"w": torch.ones(2)}, "config": settings, "x": Call()}, path)
    assert ckptool("inspect", path, "--stats", "--digests").exit_code == 0


def test_what_a_call_alone_holds_is_no_part_of_the_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    write(path, table(t("3")), call("torch.nn.init.zeros_", t("9")))
    with open_checkpoint(path) as checkpoint:
        refuse_any_given(checkpoint, checkpoint.tree)
        with pytest.raises(UnsupportedError, match=r"gives the weights to torch\.nn\.init\.zeros_"):
            refuse_any_given(checkpoint, checkpoint.tree["x"].args[0])


def test_the_names_of_buffers_that_are_not_saved_are_known(ckptool, tmp_path):
    path, out = tmp_path / "last.pt", tmp_path / "out.pt"
    names = call("builtins.set", row(call("builtins.str", text("b"))))
    more = {"_buffers": HOOKS + items((text("b"), t("9"))), "_non_persistent_buffers_set": names}
    write(path, sequential(**more), integer(1))
    assert "b" not in torch.load(path, weights_only=False)["ema"].state_dict()
    done = ckptool("extract-ema", path, "--ema", "ema", "-o", out, "--names", "ema", "--json")
    assert done.exit_code == 2
    assert "_non_persistent_buffers_set (its names are objects)" in done.json["error"]["message"]

"""Functions that a loader would call with the weights, and that may put other values there."""

from __future__ import annotations

import random

import pytest

from helpers.assembler import binary, call, integer, listed, mapping, name, row, text
from helpers.hidden_views import NAMES, Zip

MODEL, AVERAGE = b"r\1\0\0\0", b"r\2\0\0\0"  # kept in the memo
GET_MODEL, GET_AVERAGE = b"j\1\0\0\0", b"j\2\0\0\0"
TENSOR, GET_TENSOR = b"r\3\0\0\0", b"j\3\0\0\0"  # the model's last


def _method(owner: bytes, attribute: str) -> bytes:
    return call(name("builtins", "getattr"), owner, text(attribute))


# What is made, with the model and the average in the memo, and another tensor.
CALLS = {
    "an item is set": lambda t: call(name("_operator", "setitem"), GET_MODEL, text("w1"), t("9")),
    "a dict is updated": lambda t: call(
        _method(GET_MODEL, "update"), mapping((text("w1"), t("9")))
    ),
    "the averages are updated": lambda t: call(
        _method(GET_AVERAGE, "update"), mapping((text("w1"), t("9")))
    ),
    "an argument holds the model": lambda t: call(
        name("functools", "reduce"), name("_operator", "setitem"), listed(GET_MODEL, t("9"))
    ),
    "the model in a tuple": lambda _t: call(name("shutil", "move"), row(text("a"), GET_MODEL)),
    "a method in a partial": lambda t: call(
        call(name("functools", "partial"), _method(GET_MODEL, "update")),
        mapping((text("a"), t("9"))),
    ),
    "a tensor is filled": lambda _t: call(name("torch.nn.init", "zeros_"), GET_TENSOR),
    "an item is deleted": lambda _t: call(name("_operator", "delitem"), GET_MODEL, text("w1")),
}
CHANGED = "gives the weights to"


def _file(make, more=lambda _t: []) -> bytes:
    container = Zip(random.Random(1))
    table = [(text(n), container.tensor(str(k)) + TENSOR) for k, n in enumerate(NAMES)]
    table += more(container.tensor)
    average = [(text(n), container.tensor(str(k + 3))) for k, n in enumerate(NAMES)]
    body = mapping(
        (text("model"), mapping(*table) + MODEL),
        (text("ema"), mapping(*average) + AVERAGE),
        (text("x"), make(container.tensor)),
    )
    return container.file(body)


@pytest.fixture
def promote(ckptool, tmp_path):
    def run(make, *options, more=lambda _t: []):
        path, output = tmp_path / "last.pt", tmp_path / "out.pt"
        path.write_bytes(_file(make, more))
        named = ("--ema", "ema", "--model", "model")
        return ckptool("promote-ema", path, "-o", output, *named, "--json", *options)

    return run


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)
def test_weights_that_a_call_may_change_are_not_promoted(make, promote):
    for options in ((), ("--allow-shared",)):
        done = promote(make, *options)
        assert done.exit_code == 2
        assert CHANGED in done.json["error"]["message"]


KEEPING = {
    "other values": lambda t: call(name("_operator", "setitem"), listed(t("9")), text("a"), t("8")),
    "a method": lambda _t: _method(GET_MODEL, "keys"),
    "a partial": lambda _t: call(name("functools", "partial"), name("builtins", "len"), GET_MODEL),
}


@pytest.mark.parametrize("make", KEEPING.values(), ids=KEEPING)
def test_a_call_that_leaves_the_weights_alone_is_no_reason_to_refuse(make, promote):
    assert promote(make).exit_code == 0


UNSURE = {
    "a key as bytes": lambda t: [(binary(b"w1"), t("9"))],
    "a tensor that a function makes": lambda _t: [
        (text("w4"), call(name("torch", "Tensor"), listed(integer(1))))
    ],
}


@pytest.mark.parametrize("more", UNSURE.values(), ids=UNSURE)
def test_a_slot_of_which_the_loaded_values_are_not_known_is_not_written(more, promote):
    done = promote(lambda _t: integer(1), more=more)
    assert done.exit_code == 2
    assert "1 of 4 weights cannot be taken as plain tensors" in done.json["error"]["message"]

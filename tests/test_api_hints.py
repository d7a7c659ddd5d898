"""Hints of errors of the library name arguments, not options of the command line."""

from __future__ import annotations

import inspect
import re
from shlex import quote

import pytest
import torch

import ckptool
from ckptool.api import in_python
from helpers.hints import options_in_python
from helpers.making import average_of, weights
from helpers.paths import FIXTURES

WAYS = (
    {"which": "ema"}, {"which": "auto", "names": "bare"}, {"which": "ema", "buffers": "model"},
    {"ema": "", "model": "nowhere"},
)  # fmt: skip
FILES = sorted(
    path
    for folder in ("ema", "hostile")
    for path in (FIXTURES / folder).rglob("*")
    if path.is_file() and path.suffix in {".pt", ".pth", ".ckpt", ".safetensors", ".bin"}
)


def hint_of(path, **arguments):
    try:
        ckptool.load_state_dict(path, **arguments)
    except ckptool.CkptError as error:
        return error.hint or ""
    return ""


@pytest.fixture(name="two")
def _two(tmp_path):
    model = weights()
    fast = average_of(model)
    state = {"model": model, "ema": {"fast": fast, "slow": average_of(fast)}}
    torch.save(state, tmp_path / "two places.pt")
    return tmp_path / "two places.pt"


def test_the_argument_that_picks_one_is_typed_as_it_is(two):
    assert hint_of(two, which="ema") == 'ema="ema/fast"'
    assert ckptool.load_state_dict(two, "ema", ema="ema/fast")


def test_where_there_is_none_the_raw_weights_are_named(tmp_path):
    torch.save({"model": weights()}, tmp_path / "a.pt")
    assert hint_of(tmp_path / "a.pt", which="ema") == (
        'if you know where they are: ema="ADDRESS"; the model\'s own weights: which="model"'
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_hint_names_an_option(path):
    """One that the command in the hint has is a line for the shell."""
    known = inspect.signature(ckptool.load_state_dict).parameters
    for way in WAYS:
        hint = hint_of(path, **way)
        assert options_in_python(hint) == []
        assert {*re.findall(r"([a-z]+)=", hint)} <= {*known, "device"}, hint


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("ckptool extract-ema a.pt --ema 'a b'", 'ema="a b"'),
        ("name it: --ema ADDRESS or --model ADDRESS", 'name it: ema="ADDRESS" or model="ADDRESS"'),
        ("leave it out: --buffers ema", 'leave it out: buffers="ema"'),
        ("ckptool extract-ema 'x y.pt'", 'load_state_dict("x y.pt")'),
        ("name them: a.pt#ADDRESS; ckptool inspect --tensors lists the addresses",
         'name them: model="ADDRESS"; ckptool inspect --tensors lists the addresses'),
        ("name them: 'x y.pt#ADDRESS'; or", 'name them: model="ADDRESS"; or'),
        ("it's " + quote("a'b '.pt#ADDRESS"), 'it\'s model="ADDRESS"'),
        ("the raw weights: ckptool extract-ema 'x y.pt#@model'", 'the raw weights: which="model"'),
        ("(ckptool extract-ema a:b.pt)", '(load_state_dict("a:b.pt"))'),
    ],
)  # fmt: skip
def test_what_a_command_types(typed, said):
    assert in_python(typed) == said

"""A command line that is read without typer means what typer reads in it."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from ckptool.cli.catalogue import COMMANDS, command_of
from ckptool.cli.parameters import REQUIRED, Option, parameters_of, plain_call
from ckptool.cli.program import declared
from helpers.thinned import examples

WORDS = st.sampled_from([
    "a.pt", "b.ckpt#model/x", "", "-", "--", "-1", "--x", "0", "1", "2", "1_0", "١", "nan", "0x1",
    "1e3", "=", "a=b", "a b", "ä", "\udce4", "'", "*", "auto", "Auto", "json", "size", "model",
    "ema", "once", "linear", __file__, "/none/such.toml", "/",
])  # fmt: skip
FITTING = {int: ["2", "07"], float: ["0.5", "1e-3", "nan"], Path: [__file__]}


@st.composite
def command_lines(draw, parameters):
    """Draw operands and options as people type them, with at most one word that is anything."""
    operands = [one for one in parameters if not isinstance(one.declared, Option)]
    parts = [["a.pt"] for _ in operands]
    parts += [
        draw(options(one))
        for one in parameters
        if one not in operands and (one.default is REQUIRED or draw(st.integers(0, 4)) == 0)
    ]
    if draw(st.booleans()):
        name = st.sampled_from([name for one in parameters for name, _ in one.spellings])
        pairs = st.tuples(name, WORDS)
        anything = (
            WORDS.map(lambda word: [word]), name.map(lambda name: [name]), pairs.map(list),
            pairs.map(lambda pair: ["=".join(pair)]), pairs.map(lambda pair: ["".join(pair)]),
            name.map(lambda name: [name[:-1]]), name.map(lambda name: [name.upper()]),
        )  # fmt: skip
        parts.append(draw(st.one_of(*anything)))
    return [word for words in draw(st.permutations(parts)) for word in words]


@st.composite
def options(draw, one):
    """Draw an option with a value that fits."""
    name = draw(st.sampled_from([name for name, _ in one.spellings]))
    if one.kind is bool:
        return [name]
    fitting = one.kind if isinstance(one.kind, tuple) else FITTING.get(one.kind, ["x", "*=1", "a"])
    value = draw(st.sampled_from(fitting))
    is_joined = name.startswith("--") and draw(st.booleans())
    return [f"{name}={value}"] if is_joined else [name, value]


@cache
def reader_of(name: str):
    """Return a function that gives what typer would call the command with."""
    command = declared(command_of(name))

    def told(**arguments):
        return arguments

    told.__signature__ = inspect.signature(command)
    told.__annotations__ = command.__annotations__
    app = typer.Typer()
    app.command()(told)
    return lambda words: app(words, standalone_mode=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_read_plainly_is_what_typer_reads(name):
    command, read = command_of(name), reader_of(name)
    shares = []

    @examples(300)
    @given(command_lines(parameters_of(command)))
    def agrees(words):
        found = plain_call(command, words)
        shares.append(found is not None)
        if found is not None:
            assert repr(found) == repr(_by_name(read(words), found))

    agrees()
    assert any(shares)


def _by_name(arguments, like):
    """Return arguments in the order of others."""
    assert arguments.keys() == like.keys()
    return {name: arguments[name] for name in like}


@pytest.mark.parametrize(
    "line",
    [
        "inspect a.pt", "inspect a.pt b.pt --json --top 3 --match=*.weight --match b",
        "verify --require ema,resume runs --no-bytes -q", "diff a.pt b.pt --atol 1e-3 --sort name",
        "extract-ema a.pt -o b.pt --dtype bf16", "promote-ema a.pt --in-place", "rule", "rule CK4",
        "average a.pt b.pt -o c.pt --last 2", "convert a.pt --output=b.pt --drop optimizer",
    ],
)  # fmt: skip
def test_plain_lines_do_not_wait_for_typer(line):
    name, *words = line.split()
    assert plain_call(command_of(name), words) is not None


@pytest.mark.parametrize(
    "line",
    [
        "inspect", "inspect --help", "inspect a.pt --top", "inspect a.pt --top 0",
        "inspect -- a.pt",
        "inspect a.pt --color no", "inspect a.pt --json=1", "inspect a.pt --match -x", "rule a b",
        "inspect a.pt --config /none/such.toml", "verify a.pt -qv", "average a.pt", "diff a.pt",
        "extract-ema a.pt -ob.pt", "extract-ema a.pt -o=b.pt", "inspect a.pt --jso", "layouts a",
    ],
)  # fmt: skip
def test_all_others_are_left_to_typer(line):
    name, *words = line.split()
    assert plain_call(command_of(name), words) is None

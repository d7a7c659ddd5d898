"""The metadata of state dicts are known without the rules, and the rules say the same of them."""

from __future__ import annotations

import pytest

from ckptool.formats.pickles import states
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.formats.pickles.reader import no_storage
from ckptool.formats.pickles.states import States
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.sources.memory import Memory

ORDERED = b"ccollections\nOrderedDict\n)R"
VERSIONS = b"}q\x05Vlayer\n}q\x06Vversion\nI1\nss"  # {"layer": {"version": 1}}
FUNCTION = b"cquietlib\ntouch\n"
OBJECT = b"cquietlib\nPlain\n)\x81"
TRAP = b"ccollections\ndefaultdict\n(" + FUNCTION + b"tR"


def built(modules: bytes, after: bytes = b"", key: bytes = b"V_metadata\n") -> bytes:
    """An ordered dict with a state of one item."""
    return b"\x80\x02" + ORDERED + b"}" + key + modules + b"sb" + after + b"."


def then(key: bytes, value: bytes, of: bytes = b"h\x05") -> bytes:
    """Set an item of a dict that was used before."""
    return of + key + value + b"s0"


PROGRAMS = {
    "versions": built(VERSIONS),
    "ordered": built(ORDERED + b"Vlayer\n}Vversion\nI1\nss"),
    "no modules": built(b"}"),
    "no dict": built(b"I1\n"),
    "another attribute": built(VERSIONS, key=b"Vitems\n"),
    "a function": built(b"}Vlayer\n" + FUNCTION + b"s"),
    "a function of a module": built(b"}Vlayer\n}Vversion\n" + FUNCTION + b"ss"),
    "an object": built(b"}Vlayer\n}Vversion\n" + OBJECT + b"ss"),
    "an object as a name": built(b"}" + OBJECT + b"}s"),
    "a trap": built(TRAP),
    "a trap of a module": built(b"}Vlayer\n" + TRAP + b"s"),
    "an ordered dict with a state": built(ORDERED + b"}Vkeys\n" + FUNCTION + b"sb"),
    "a function later": built(VERSIONS, then(b"Vmore\n", FUNCTION)),
    "a function of a module later": built(VERSIONS, then(b"Vmore\n", FUNCTION, of=b"h\x06")),
    "a trap later": built(VERSIONS, then(b"Vmore\n", TRAP)),
    "an object later": built(VERSIONS, then(b"Vmore\n", OBJECT)),
    "more versions later": built(VERSIONS, then(b"Vmore\n", b"}")),
    "a second state": built(VERSIONS, b"}Vkeys\n" + FUNCTION + b"sb"),
}


def noted(program: bytes) -> tuple[set[str], set[str], bool]:
    """(misused names, called names, whether the rules were asked)."""
    builder = TorchBuilder(no_storage)
    machine = PickleMachine(Memory(program), 0, builder)
    made = machine.run()
    builder.look_for_calls(machine.globals, made)
    names = {ref.qualname for ref in builder.misused}
    return names, {ref.qualname for ref in builder.called}, builder._rules is not None


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_rules_say_the_same(name, monkeypatch):
    found = noted(PROGRAMS[name])
    monkeypatch.setattr(States, "is_metadata", lambda *_: False)
    wanted = noted(PROGRAMS[name])
    assert found[:2] == wanted[:2]
    assert wanted[2]


def test_the_programs_are_of_both_kinds():
    outcomes = {name: noted(program) for name, program in PROGRAMS.items()}
    assert not any(outcomes[name][2] for name in ("versions", "ordered", "no modules"))
    assert {bool(misused) for misused, _, _ in outcomes.values()} == {False, True}


MANY = b"\x80\x02" + (ORDERED + b"}V_metadata\n" + VERSIONS + b"sb0") * 4 + b"N."
GROWN = built(VERSIONS, b"".join(then(b"V%d\n" % i, b"}") for i in range(6)))
FULL = built(b"}" + b"".join(b"V%d\n}s" % i for i in range(6)))


@pytest.mark.parametrize("program", [MANY, GROWN, FULL], ids=["many", "grown", "full"])
@pytest.mark.parametrize(("most", "is_asked"), [(6, True), (8, False)])
def test_a_number_of_modules_is_looked_at_and_then_the_rules_are_asked(
    program, most, is_asked, monkeypatch
):
    """Thousands of states may hold one dict of thousands of modules."""
    monkeypatch.setattr(states, "MAX_LOOKED", most)
    assert noted(program)[2] is is_asked

"""Grades of values: each is the worst of its parts, also in circles, and also after a change."""

from __future__ import annotations

import random

import pytest

from ckptool.errors import DamagedError
from ckptool.formats.pickles import budget
from ckptool.formats.pickles.grades import (
    ARMED,
    DATA,
    FOREIGN,
    HOLDING,
    NAME,
    NESTED,
    OBJECT,
    TRAP,
    Grades,
)
from ckptool.tree.nodes import GlobalRef, NotedDict, Opaque

FUNCTION = GlobalRef("quietlib", "touch")
LOADS = GlobalRef("torch.storage", "_load_from_bytes")
OWN, USERS, HOLDER = "torch.fx.Graph", "quietlib.Plain", "argparse.Namespace"


def trap() -> NotedDict:
    """A defaultdict that calls a function of the user's for a missing key."""
    made = NotedDict()
    made.made_with = {"default_factory": FUNCTION}
    return made


@pytest.mark.parametrize(
    ("value", "grade"),
    [
        ([1, {"a": (2, b"c")}], DATA),
        (Opaque(USERS, state={"a": 1}), FOREIGN),
        (Opaque(USERS, state=[Opaque(USERS)]), FOREIGN),
        (Opaque(OWN, state={"a": 1}), OBJECT),
        (Opaque(USERS, state=Opaque(OWN, state={"a": 1})), OBJECT),
        (Opaque(OWN, state=[Opaque(USERS)]), NESTED),
        ([Opaque(OWN, (Opaque(OWN),))], NESTED),
        (Opaque(USERS, state=Opaque(OWN, (Opaque(OWN),))), NESTED),
        ([Opaque(USERS, state={"a": [FUNCTION]})], HOLDING),
        (Opaque(OWN, (Opaque(USERS, state=FUNCTION),)), HOLDING),
        (Opaque(USERS, state={"a": trap()}), HOLDING),
        (Opaque(OWN, (trap(),)), TRAP),
        (Opaque(HOLDER, state={"a": FUNCTION}), NAME),
        ({"a": {FUNCTION}}, NAME),
        ([trap()], TRAP),
        (Opaque(USERS, state=[LOADS]), ARMED),
    ],
)
def test_the_grade_is_that_of_the_worst_part(value, grade):
    assert Grades().of(value) == grade


def test_the_members_of_a_circle_have_the_grade_of_what_they_reach():
    one, other = Opaque(USERS), Opaque(USERS)
    one.state, other.state = {"next": other}, {"next": one, "call": FUNCTION}
    outside = [one]
    known = Grades()
    assert [known.of(value) for value in (outside, one, other)] == [HOLDING] * 3


@pytest.mark.parametrize("between", [lambda own: own, lambda own: [own], lambda own: {"a": (own,)}])
def test_an_own_object_in_a_circle_holds_an_object(between):
    own = Opaque(OWN)
    own.state = between(own)
    assert Grades().of([own]) == NESTED


def test_a_value_is_graded_anew_after_a_part_of_it_was_changed():
    inner: list[object] = [1]
    value = {"a": (inner, Opaque(USERS, state=inner))}
    known = Grades()
    assert known.of(value) == FOREIGN
    known.forget(inner)
    inner.append(FUNCTION)
    assert known.of(value) == NAME
    assert known.have_changed


def drawn(chance: random.Random, depth: int) -> object:
    """A value without circles whose parts share other values."""
    leaf = chance.choice([1, "a", FUNCTION, LOADS, None, None, 2.0, b"c"])
    if depth == 0:
        return leaf
    shared = drawn(chance, depth - 1)
    parts = [shared, *(drawn(chance, depth - 1) for _ in range(chance.randrange(3))), shared]
    kind = chance.randrange(5)
    made = (
        parts, tuple(parts), dict(enumerate(parts)), Opaque(USERS, state=parts),
        Opaque(OWN, tuple(parts)),
    )  # fmt: skip
    return made[kind]


def by_definition(value: object) -> int:
    """The grade by walking through all parts again and again."""
    if isinstance(value, Opaque):
        worst = by_definition([value.args, value.state])
        held = {HOLDING: HOLDING, NAME: HOLDING, NESTED: NESTED, ARMED: ARMED}
        of_own = {DATA: OBJECT, FOREIGN: NESTED, OBJECT: NESTED}
        of_users = {DATA: FOREIGN, FOREIGN: FOREIGN, OBJECT: OBJECT}
        return (held | (of_own if value.qualname == OWN else of_users))[worst]
    if isinstance(value, GlobalRef):
        return ARMED if value is LOADS else NAME
    parts = value.values() if isinstance(value, dict) else value
    is_row = isinstance(value, (dict, list, tuple))
    return max(map(by_definition, parts), default=DATA) if is_row else DATA


def test_grades_are_those_of_the_definition():
    chance = random.Random(7)
    known = Grades()
    values = [drawn(chance, n % 5) for n in range(300)]
    found = [known.of(value) for value in values]
    assert found == [by_definition(value) for value in values]
    assert set(found) >= {DATA, FOREIGN, OBJECT, NESTED, HOLDING, NAME, ARMED}


def test_what_was_not_looked_at_does_not_pass(monkeypatch):
    monkeypatch.setattr(budget, "MIN_LOOKS", 1000)
    rows = [[] for _ in range(100)]
    known = Grades()

    def look_and_change() -> None:
        for _ in range(20):
            known.of(rows)
            known.forget(rows)

    with pytest.raises(DamagedError, match="shared and changed again and again"):
        look_and_change()


def test_a_value_that_many_share_is_looked_at_once():
    large = [[i] for i in range(1000)]
    known = Grades()
    for _ in range(100):
        known.of(Opaque(USERS, state={"large": large}))
    assert budget.MIN_LOOKS - known.looks.left < 3000

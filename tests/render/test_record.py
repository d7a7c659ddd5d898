"""Records are frozen dataclasses: whatever reads or copies these, reads and copies those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass, replace

import pytest

from ckptool.reports.record import record


class Fields:
    name: str
    size: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)
    told: str | None = field(default=None, metadata={"may be absent": True})


@record
class Ours(Fields):
    __annotations__ = Fields.__annotations__
    size, parts, told = (
        0,
        field(default_factory=dict),
        field(default=None, metadata={"may be absent": True}),
    )


@dataclass(frozen=True)
class Theirs(Fields):
    __annotations__ = Fields.__annotations__
    size, parts, told = (
        0,
        field(default_factory=dict),
        field(default=None, metadata={"may be absent": True}),
    )


GIVEN = [(("a",), {}), (("a", 1), {}), (("a",), {"told": "b"}), ((), {"name": "a", "size": 3})]
WRONG = [((), {}), (("a", 1, {}, "b", 5), {}), (("a",), {"name": "b"}), (("a",), {"other": 1})]


@pytest.mark.parametrize(("args", "kwargs"), GIVEN)
def test_fields_have_the_values_of_a_dataclass(args, kwargs):
    ours, theirs = Ours(*args, **kwargs), Theirs(*args, **kwargs)
    assert is_dataclass(ours)
    for one, other in zip(fields(ours), fields(theirs), strict=True):
        assert (one.name, one.metadata) == (other.name, other.metadata)
        assert getattr(ours, one.name) == getattr(theirs, one.name)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert ours == Ours(*args, **kwargs)
    assert ours != theirs
    assert replace(ours, size=9).size == 9
    assert replace(ours, size=9) != ours


@pytest.mark.parametrize(("args", "kwargs"), WRONG)
@pytest.mark.parametrize("cls", [Ours, Theirs])
def test_wrong_arguments_are_refused(cls, args, kwargs):
    with pytest.raises(TypeError):
        cls(*args, **kwargs)


def test_each_has_a_default_of_its_own():
    assert Ours("a").parts is not Ours("b").parts


@pytest.mark.parametrize("cls", [Ours, Theirs])
def test_nothing_can_be_changed(cls):
    made = cls("a")
    with pytest.raises(FrozenInstanceError):
        made.name = "b"
    with pytest.raises(FrozenInstanceError):
        del made.name
    assert made.name == "a"


def test_equal_records_have_one_hash():
    assert hash(Ours("a", parts=())) == hash(Ours("a", parts=()))

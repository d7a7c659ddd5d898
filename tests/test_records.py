"""Records are dataclasses, and named tuples those of ``typing``, to all that read or copy them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import typing
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, asdict, dataclass, is_dataclass

import pytest

from ckptool.records import NamedTuple, field, names_of, record, replace

TOLD = {"may be absent": True}


@dataclass(frozen=True)
class Theirs:
    name: str
    size: int = 0
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    told: str | None = dataclasses.field(default=None, compare=False, metadata=TOLD)


@record
class Plain:
    name: str
    size: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)
    told: str | None = field(default=None, compare=False, metadata=TOLD)


@record(slots=True)
class Slotted:
    name: str
    size: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)
    told: str | None = field(default=None, compare=False, metadata=TOLD)


@record(frozen=False, slots=True, eq=False)
class Free:
    name: str
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class TheirsOfMore:
    more: int = 1
    name: str


@record(kw_only=True)
class Base:
    name: str


@record(kw_only=True)
class OfMore(Base):
    more: int = 1


RECORDS = [Plain, Slotted]
GIVEN = [(("a",), {}), (("a", 1), {}), (("a",), {"told": "b"}), ((), {"name": "a", "size": 3})]
WRONG = [((), {}), (("a", 1, {}, "b", 5), {}), (("a",), {"name": "b"}), (("a",), {"other": 1})]


@pytest.mark.parametrize("cls", RECORDS)
@pytest.mark.parametrize(("args", "kwargs"), GIVEN)
def test_fields_have_the_values_of_a_dataclass(cls, args, kwargs):
    ours, theirs = cls(*args, **kwargs), Theirs(*args, **kwargs)
    assert is_dataclass(ours)
    assert asdict(ours) == asdict(theirs)
    for one, other in zip(dataclasses.fields(ours), dataclasses.fields(theirs), strict=True):
        assert (one.name, one.type, one.default) == (other.name, other.type, other.default)
        assert (one.metadata, one.compare) == (other.metadata, other.compare)
        assert one.default_factory == other.default_factory
    assert repr(ours) == repr(theirs).replace("Theirs", cls.__name__)


@pytest.mark.parametrize("cls", RECORDS)
def test_records_are_compared_and_copied_as_dataclasses_are(cls):
    one = cls("a", 1, (), "said")
    assert one == cls("a", 1, ())
    assert hash(one) == hash(cls("a", 1, (), "other"))
    assert one != Theirs("a", 1, (), "said")
    for changed in (replace(one, size=9), dataclasses.replace(one, size=9)):
        assert changed == cls("a", 9, ())
        assert changed.told == "said"
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert asdict(copied) == asdict(one)


@pytest.mark.parametrize(("args", "kwargs"), WRONG)
@pytest.mark.parametrize("cls", [*RECORDS, Theirs])
def test_wrong_arguments_are_refused(cls, args, kwargs):
    with pytest.raises(TypeError):
        cls(*args, **kwargs)


@pytest.mark.parametrize("cls", RECORDS)
def test_wrong_changes_are_refused(cls):
    with pytest.raises(TypeError):
        replace(cls("a"), other=1)


@pytest.mark.parametrize("cls", RECORDS)
def test_each_has_a_default_of_its_own(cls):
    assert cls("a").parts is not cls("b").parts


@pytest.mark.parametrize("cls", [*RECORDS, Theirs])
def test_nothing_can_be_changed(cls):
    made = cls("a")
    with pytest.raises(FrozenInstanceError):
        made.name = "b"
    with pytest.raises(FrozenInstanceError):
        del made.name
    assert made.name == "a"


def test_slots_leave_no_room_for_others():
    assert not hasattr(Slotted("a"), "__dict__")
    assert names_of(Slotted) == ("name", "size", "parts", "told")


def test_a_record_that_is_not_frozen_is_itself_alone():
    one = Free("a")
    one.size = 2
    assert (one.name, one.size) == ("a", 2)
    assert one != Free("a", 2)
    assert len({one, Free("a", 2)}) == 2


def test_a_record_has_the_fields_of_its_base_behind_its_own():
    ours, theirs = OfMore(name="a"), TheirsOfMore(name="a")
    assert names_of(OfMore) == ("more", "name")
    assert asdict(ours) == asdict(theirs)
    assert [one.type for one in dataclasses.fields(ours)] == ["int", "str"]
    assert ours != OfMore(name="a", more=2)
    assert dataclasses.replace(ours, name="b") == replace(ours, name="b") == OfMore(name="b")
    with pytest.raises(TypeError):
        OfMore(more=2)


# ------------------------------------------------------------------------------------- named tuples


class TheirTuple(typing.NamedTuple):
    name: str
    size: int = 0
    parts: tuple[int, ...] = ()

    def doubled(self) -> int:
        """Return a value that a method makes."""
        return 2 * self.size


class OurTuple(NamedTuple):
    """Named values."""

    name: str
    size: int = 0
    parts: tuple[int, ...] = ()

    def doubled(self) -> int:
        """Return a value that a method makes."""
        return 2 * self.size

    @property
    def first(self) -> str:
        return super().__getitem__(0)


class Empty(NamedTuple):
    pass


class Wide(NamedTuple):
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int
    h: int
    i: int
    j: int = 9
    k: int = 10


TUPLES = [(("a",), {}), (("a", 1), {}), (("a", 1, (2,)), {}), ((), {"size": 3, "name": "a"})]
WRONG_TUPLES = [((), {}), (("a", 1, (), 2), {}), (("a",), {"name": "b"}), (("a",), {"other": 1})]


@pytest.mark.parametrize(("args", "kwargs"), TUPLES)
def test_named_tuples_are_made_like_those_of_typing(args, kwargs):
    ours, theirs = OurTuple(*args, **kwargs), TheirTuple(*args, **kwargs)
    assert ours == theirs
    assert hash(ours) == hash(theirs)
    assert ours._asdict() == theirs._asdict()
    assert (ours.name, ours.size, ours.parts) == (theirs.name, theirs.size, theirs.parts)
    assert repr(ours) == repr(theirs).replace("TheirTuple", "OurTuple")
    assert ours.doubled() == theirs.doubled()
    assert ours.first == "a"
    assert not hasattr(ours, "__dict__")


@pytest.mark.parametrize(("args", "kwargs"), WRONG_TUPLES)
def test_named_tuples_refuse_what_those_of_typing_do(args, kwargs):
    for cls in (TheirTuple, OurTuple):
        with pytest.raises(TypeError):
            cls(*args, **kwargs)


def test_named_tuples_have_the_rest_of_those_of_typing():
    ours = OurTuple("a", 1)
    assert OurTuple._fields == TheirTuple._fields == OurTuple.__match_args__
    assert OurTuple._field_defaults == TheirTuple._field_defaults
    assert typing.get_type_hints(OurTuple) == typing.get_type_hints(TheirTuple)
    assert OurTuple.__doc__ == "Named values."
    assert OurTuple._make(["b", 2, ()]) == ("b", 2, ())
    with pytest.raises(TypeError):
        OurTuple._make(["b"])
    assert ours._replace(size=5) == ("a", 5, ())
    with pytest.raises(TypeError):
        ours._replace(other=5)
    with pytest.raises(AttributeError):
        ours.size = 3
    assert copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours)) == ours
    assert type(copy.copy(ours)) is OurTuple
    assert Empty() == ()
    assert Wide(*range(9)) == (*range(11),)
    assert Wide(*range(9), k=3) == (*range(10), 3)
    assert (Wide(*range(9)).a, Wide(*range(9)).k) == (0, 10)
    match ours:
        case OurTuple(name, size):
            assert (name, size) == ("a", 1)

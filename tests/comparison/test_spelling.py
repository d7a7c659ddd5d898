"""What has no address of its own, as a text of bounded length, made in bounded time."""

from __future__ import annotations

import pytest

from ckptool.comparison import spelling
from ckptool.comparison.leaves import flatten
from ckptool.comparison.objects import keyed_by, object_text
from ckptool.comparison.spelling import LONG_TEXT, Speller
from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.tree.nodes import Opaque

LONG = "x" * (1 << 20)
LONG_TEXTS = [LONG + "0", LONG + "1"]  # a speller knows what it met by identity


@pytest.fixture
def speller():
    return Speller(TensorReader())


def test_a_long_argument_of_many_objects_is_not_written_out(speller):
    texts = [object_text(Opaque("a.B", (text,)), speller) for text in LONG_TEXTS]
    assert max(map(len, texts)) < LONG_TEXT
    assert texts[0] != texts[1]


def test_a_long_key_of_many_dicts_is_not_written_out(speller):
    texts = [keyed_by({text: 1, 2: 3}, speller) for text in LONG_TEXTS]
    assert max(map(len, texts)) < LONG_TEXT
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    "group",
    [
        lambda part: (1, part),
        lambda part: [1, part],
        lambda part: {1, part},
        lambda part: frozenset({1, part}),
        lambda part: {part: 1},
        lambda part: {1: part},
        lambda part: Opaque("m.B", (part,)),
        lambda part: Opaque("m.B", kwargs={"a": part}),
        lambda part: Opaque("m.B", state=part),
        lambda part: Opaque("m.B", items={1: part}),
        lambda part: Opaque("m.B", elements=[part]),
    ],
)
def test_each_part_of_a_group_counts(group, speller):
    one, other, same = (Opaque("m.A", state=group(part)) for part in (2, 3, 2))
    assert speller.spell(one) != speller.spell(other)
    assert speller.spell(one) == speller.spell(same)


def test_the_order_of_a_set_does_not_count(speller):
    sets = {0, 8}, {8, 0}  # one place for both: the first comes first
    assert list(sets[0]) != list(sets[1])
    texts = {speller.spell(Opaque("m.A", state=items)) for items in sets}
    assert len(texts) == 1


def circle() -> tuple[Opaque, Opaque]:
    one, other = Opaque("m.A"), Opaque("m.B")
    one.state, other.state = [other], [one]
    return one, other


def test_what_lies_in_a_circle_is_spelled_alike_whatever_came_before():
    one, other = circle()
    first, then = Speller(TensorReader()), Speller(TensorReader())
    texts = first.spell(one), first.spell(other)
    assert (then.spell(other), then.spell(one)) == texts[::-1]


def test_a_part_of_a_circle_is_spelled_anew_in_another_place(speller):
    """What refers that many levels up means something else there."""
    one, other = circle()
    assert (
        speller.spell((one, other))
        == f"{speller.spell((one,))[:-1]}, " + (Speller(TensorReader()).spell((other,))[1:])
    )


def test_what_the_parts_of_a_set_share_is_spelled_once(monkeypatch):
    monkeypatch.setattr(spelling, "MAX_SPELLED", 20_000)
    shared = list(range(10_000))
    leaves = flatten({"set": {Opaque("m.A", state=shared) for _ in range(100)}}, TensorReader())
    assert len(leaves) == 1


def test_circles_that_share_without_end_are_given_up(monkeypatch):
    monkeypatch.setattr(spelling, "MAX_SPELLED", 20_000)
    root = Opaque("m.A")
    node: object = root
    for _ in range(20):
        node = Opaque("m.A", state=[node, node])
    root.state = node
    with pytest.raises(DamagedError, match="never end"):
        flatten({"set": {root}}, TensorReader())


def test_addresses_that_have_no_room_are_refused():
    tree = [{LONG: 1, 2: 3}] * 300
    with pytest.raises(DamagedError, match="do not fit"):
        flatten(tree, TensorReader())

"""Parts cut out of a pickle: Python makes of the rest what it made before, without the parts."""

from __future__ import annotations

import collections
import io
import pickle
from argparse import Namespace
from random import Random

import pytest

from ckptool.errors import AddressError, UnsupportedError
from ckptool.writers import pickle_cut
from ckptool.writers.pickle_cut import without_items
from helpers.likeness import assert_same_objects
from helpers.thinned import one_in

PLAIN = (1, "", "text", None, 2.5, b"ab", True, 10**20)


def drawn(rng: Random, shared: list, depth: int = 0) -> object:
    """Any object: some hold themselves, and some are held by several others."""
    kind = rng.randrange(12)
    if shared and kind == 0:
        return rng.choice(shared)
    if depth > 3 or kind < 4:
        return rng.choice(PLAIN)

    def part() -> object:
        return drawn(rng, shared, depth + 1)

    makers = {
        4: lambda: [part() for _ in range(rng.randrange(4))],
        5: lambda: tuple(part() for _ in range(rng.randrange(5))),
        6: lambda: {f"k{rng.randrange(6)}": part() for _ in range(rng.randrange(4))},
        7: lambda: collections.OrderedDict((f"k{rng.randrange(6)}", part()) for _ in range(3)),
        8: lambda: Namespace(a=part(), b=1),
        9: lambda: collections.defaultdict(list, q=part()),
        10: lambda: collections.deque([part()], maxlen=3),
        11: lambda: {1, 2, 3} if rng.random() < 0.5 else frozenset({1, 2}),
    }
    made = makers[kind]()
    if isinstance(made, list) and rng.random() < 0.3:
        made.append(made)
    if isinstance(made, Namespace) and rng.random() < 0.3:
        made.me = made
    if not isinstance(made, (set, frozenset)):
        shared.append(made)
    return made


@pytest.mark.parametrize("seed", one_in(4, range(200)))
def test_what_stays_is_what_it_was(seed):
    rng = Random(seed)
    for _ in range(20):
        shared: list = []
        top = {f"p{i}": drawn(rng, shared) for i in range(rng.randrange(1, 7))}
        dropped = rng.sample(list(top), rng.randrange(1, len(top) + 1))
        stream = io.BytesIO()
        pickler = rng.choice([pickle.Pickler, pickle._Pickler])
        pickler(stream, rng.choice([2, 2, 3, 4, 5])).dump(top)
        cut = without_items(stream.getvalue(), [(key,) for key in dropped])
        wanted = pickle.loads(stream.getvalue())
        for key in dropped:
            del wanted[key]
        assert_same_objects(pickle.loads(cut), wanted)


def test_parts_below_the_top():
    top = {"a": {"b": [1], "c": {"d": 2, "e": 3}}, "f": 4}
    cut = without_items(pickle.dumps(top, 2), [("a", "c", "d"), ("a", "b")])
    assert pickle.loads(cut) == {"a": {"c": {"e": 3}}, "f": 4}


def test_what_was_described_in_a_dropped_part_is_described_where_it_stays():
    inner = ["shared"]
    outer = [inner, inner]
    top = {"dropped": {"first": inner, "second": outer}, "x": inner, "y": outer, "z": inner}
    found = pickle.loads(without_items(pickle.dumps(top, 4), [("dropped",)]))
    assert found == {"x": inner, "y": outer, "z": inner}
    assert found["x"] is found["z"] is found["y"][0] is found["y"][1]


@pytest.mark.parametrize(
    ("top", "path"),
    [
        ({"a": 1}, ("b",)),  # not there
        ({"a": [1]}, ("a", "0")),  # in a list
        ({1: 2}, ("1",)),  # no text
        ([{"a": 1}], ("a",)),
        ({"a": (shared := {"b": 1, "c": 2}), "d": shared}, ("d", "b")),  # shared with another place
    ],
)
def test_a_part_that_is_no_item_of_its_own(top, path):
    with pytest.raises(AddressError, match="cannot be left out"):
        without_items(pickle.dumps(top, 2), [path])


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"}2.", "uses DUP"),
        (b"}N0.", "uses POP"),
        (b"}h\x07.", "nothing in the memo"),
        (b"}q\x01q\x01.", "twice"),
        (b"}q\x01h\x01q\x02.", "twice"),
        (b"}q\x01h\x01U\x01aNs.", "by way of the memo"),
        (b"}(U\x01au.", "a key without a value"),
        (b"}(N.", "on the stack"),
        (b"}N.", "on the stack"),
        (b"(}Ns.", "more values than there are"),
        (b"}u.", "misses a mark"),
        (b"a.", "more values than there are"),
        (b"}", "cannot be read"),
        (b"}p-1\n.", "twice"),
        (b"\x80\x05}\x98.", "uses READONLY_BUFFER"),
        (b"}\xff.", "cannot be read"),
    ],
)
def test_what_no_pickler_writes_is_refused(program, why):
    with pytest.raises(UnsupportedError, match=why):
        without_items(program, [("a",)])


def test_a_pickle_of_any_length_is_not_taken(monkeypatch):
    monkeypatch.setattr(pickle_cut, "MAX_PICKLE", 8)
    with pytest.raises(UnsupportedError, match="a pickle of"):
        without_items(pickle.dumps({"a": "long enough"}), [("a",)])


@pytest.mark.parametrize("many", [b"(" + b"N" * 5, b"]q\1]q\2]q\3]q\4]q\5"], ids=["stack", "memo"])
def test_a_pickle_of_any_memory_is_not_taken(monkeypatch, many):
    monkeypatch.setattr(pickle_cut, "MAX_VALUES", 4)
    with pytest.raises(UnsupportedError, match="more than 4 values"):
        without_items(b"}" + many, [("a",)])


def test_a_key_that_is_set_twice():
    program = b"}(X\x01\0\0\0aNX\x01\0\0\0a}u."
    with pytest.raises(AddressError):
        without_items(program, [("a",)])

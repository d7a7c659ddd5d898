"""The memo: promised entries are what would have been stored, whatever is stored around them."""

from __future__ import annotations

import pytest

from ckptool.formats.pickles.memo import FIRST, Memo


def promised(memo: Memo, first: int, *values: str, made: list[str] | None = None) -> None:
    def make(*parts):
        (made if made is not None else []).extend(parts)
        return parts

    memo.promise(first, len(values), (make, values))


def test_entries_are_made_when_one_of_them_is_read():
    memo, made = Memo(), []
    promised(memo, 300, "a", "b", made=made)
    promised(memo, 310, "c", "d", made=made)
    assert not made
    assert [memo[301], memo[300]] == ["b", "a"]
    assert made == ["a", "b"]


@pytest.mark.parametrize("index", [0, 299, 302, 309, 312])
def test_what_was_never_stored_is_missing(index):
    memo = Memo()
    promised(memo, 300, "a", "b")
    promised(memo, 310, "c", "d")
    for _ in range(2):
        with pytest.raises(KeyError, match=str(index)):
            memo[index]
        memo.keep()


def test_a_later_entry_takes_the_place_of_a_promised_one():
    memo = Memo()
    promised(memo, 300, "a", "b")
    memo[300] = "later"
    assert [memo[301], memo[300]] == ["b", "later"]


def test_nothing_may_be_promised_at_or_below_an_entry():
    memo = Memo()
    assert memo.free == FIRST
    memo.store(700, "stored")
    assert memo.free == 701
    promised(memo, 800, "a", "b")
    assert memo.free == 802
    memo.store(10, "stored")
    assert memo.free == 802


def test_entries_that_are_counted_count_the_promised_ones():
    memo = Memo()
    promised(memo, 300, "a", "b")
    memo.add("third")
    assert memo[2] == "third"
    assert len(memo) == 3
    assert memo.free > 1 << 32


def test_bounds_are_those_of_all_entries():
    memo = Memo()
    assert memo.bounds == (0, 0)
    memo.store(7, "stored")
    promised(memo, 300, "a", "b")
    assert memo.bounds == (7, 301)
    memo.store(-1, "stored")
    assert memo.bounds == (-1, 301)

"""The work that a pickle may cause: each kind is counted, and refused where no pickler needs it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from ckptool.errors import DamagedError
from ckptool.formats.pickles import budget
from ckptool.formats.pickles.budget import MAX_INERT, MAX_REPEATS, Budget
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.sources.memory import Memory
from helpers import bombs

TOO_MUCH = (
    "too long to hash|again and again|one hash|nested too deep|find no place|no data|outside itself"
)


def read(data: bytes) -> object:
    return PickleMachine(Memory(data)).run()


@pytest.mark.parametrize("name", bombs.KEYS)
def test_keys_that_take_long_are_refused(name, monkeypatch):
    """Each of these takes Python's own unpickler minutes, or more memory than there is."""
    monkeypatch.setattr(budget, "MIN_WORK", 1 << 19)  # the test need not take seconds
    monkeypatch.setattr(budget, "SECONDS", 0.5)
    if name.startswith(("dicts of", "copies of", "a tensor")):
        pytest.skip("of torch's builder: see the test of whole files")
    with pytest.raises(DamagedError, match=TOO_MUCH):
        read(bombs.KEYS[name](400_000))


@pytest.mark.parametrize(
    "value",
    [
        {(i, str(i)): i for i in range(20_000)},
        {(i, (i + 1, ("a", 2.5))) for i in range(20_000)},
        {frozenset({i, i + 1}): None for i in range(5_000)},
        {i << 40: i for i in range(20_000)},  # addresses, as optimizers once had them
        {-i: {"step": 1, "x" * 300: 2} for i in range(20_000)},
        {1 << 200: 1, 2.5: 2, None: 3, True: 4, b"a": 5, "b": 6, "c" * 100_000: 7},
        [{("a", "b"): 1}] * 3 + [{("a", "b"): 1} for _ in range(20_000)],
    ],
    ids=["pairs", "nested", "frozensets", "addresses", "long texts", "all kinds", "again"],
)
def test_honest_keys_are_read(value):
    assert read(pickle.dumps(value)) == value


def test_a_dict_whose_keys_are_set_again_is_refused_after_a_thousand():
    work, held = Budget(), {"a": 1}
    for _ in range(MAX_REPEATS):
        work.set_items(held, ["a"], [2])
    with pytest.raises(DamagedError, match="again and again"):
        work.set_items(held, ["a"], [2])


def test_pickles_of_one_file_share_the_budget():
    """A hundred pickles one behind the other do not have a hundred times the objects."""
    work = Budget()
    for _ in range(MAX_INERT):
        work.count_inert()
    with pytest.raises(DamagedError, match="objects"):
        work.count_inert()


@pytest.mark.parametrize("grown", [budget.MAX_RESIDENT, budget.MAX_RESIDENT + 1])
def test_memory_is_counted_from_the_first_pickle_that_is_not_small(monkeypatch, grown):
    """What the process held before is not the pickle's; small ones before it may share a file."""
    blocks, resident = 10 * budget.MAX_BLOCKS, 1 << 34
    monkeypatch.setattr(budget, "sys", SimpleNamespace(getallocatedblocks=lambda: blocks))
    monkeypatch.setattr(budget, "resident_bytes", lambda: resident)
    work = Budget()
    work.begin_memory(budget.SMALL)
    work.check_memory(budget.SMALL)
    resident += 1 << 30
    work.begin_memory(1)
    blocks, resident = blocks + budget.MAX_BLOCKS + 1, resident + grown
    work.begin_memory(1 << 20)
    if grown <= budget.MAX_RESIDENT:
        work.check_memory(1 << 20)
    else:
        with pytest.raises(DamagedError, match="512 MiB of objects"):
            work.check_memory(1 << 20)


def test_larger_files_may_do_more():
    small, large = Budget(), Budget()
    large.allow(1 << 30)
    large.count_copies(1 << 29)
    with pytest.raises(DamagedError, match="copies the same data"):
        small.count_copies(1 << 29)

"""Rows of pickles and streams: all are followed, in bounded time."""

from __future__ import annotations

import time

import pytest

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.behind import listen_behind
from ckptool.formats.nested import pickles_of
from ckptool.formats.rows import MAX_BEHIND
from ckptool.sources.memory import Memory
from helpers import bombs
from helpers.two_faced import EVIL, NOTHING, legacy, legacy_with_values, torch_zip


def names_behind(data: bytes) -> set[str]:
    pickles = pickles_of("first")
    listen_behind(Memory(data), 0, pickles)
    return {named.ref.qualname for named in pickles.globals_named}


@pytest.mark.parametrize(
    "before",
    [
        NOTHING,
        b"N.",
        NOTHING * 1000,
        legacy(),
        legacy_with_values() * 3,
        legacy_with_values() + b"N.",
    ],
    ids=["signed", "bare", "many", "stream", "values", "pickle-behind-values"],
)
def test_what_stands_behind_is_followed(before):
    assert "posix.mkdir" in names_behind(before + EVIL)


@pytest.mark.parametrize("junk", [b"\0" * 64, bytes(range(256)) * 4, b"\nname: value\n" * 9])
def test_bytes_that_are_no_pickle_end_the_row(junk):
    assert names_behind(junk + EVIL) == set()


def test_a_pickle_that_breaks_off_names_only_what_is_dangerous():
    assert names_behind(b"\x80\x02cmyproject\nThing\n)\x81X\xff\xff") == set()
    assert names_behind(EVIL[:-1] + b"\xff") == {"posix.mkdir"}


@pytest.mark.parametrize(
    "unread",
    [
        bombs.KEYS["a long tuple as a key"](14_000),  # too much work
        b"ccollections\nCounter\n(](I1\netR.",  # a call that ckptool does not make
    ],
    ids=["work", "call"],
)
def test_a_pickle_that_only_loaders_follow_hides_none_behind_it(unread):
    with pytest.raises(UnsupportedError, match="cannot be followed"):
        names_behind(unread + EVIL)


@pytest.mark.slow
def test_looks_are_counted_for_all_pickles_of_a_row():
    """Each for itself could take as long as is allowed for all."""
    row = bombs.VALUES["a list that is changed and given again"](14_000) * 20
    started = time.process_time()
    with pytest.raises(UnsupportedError, match="cannot be followed"):
        names_behind(row)
    assert time.process_time() - started < 20


def test_a_zip_whose_directory_states_too_much_is_refused():
    """Torch reads it from where the stream ends, and the rest of its directory is ignored."""
    archive = bytearray(torch_zip(EVIL))
    archive[-10] += 4
    with pytest.raises(DamagedError):
        names_behind(legacy() + archive)


@pytest.mark.slow
def test_a_row_without_end_is_refused_soon():
    started = time.process_time()
    with pytest.raises(UnsupportedError, match="pickles behind"):
        names_behind(b"N." * MAX_BEHIND)
    assert time.process_time() - started < 20

"""Expressions are compiled when they are first asked, and are then those of ``re``."""

from __future__ import annotations

import re

import pytest

from ckptool.regex import regex


def test_one_is_what_re_compiles():
    ours, theirs = regex(r"(?P<stem>[a-z]+)-(\d+)", re.IGNORECASE), r"(?P<stem>[a-z]+)-(\d+)"
    for text in ("Rank-3", "rank", "x rank-12 rank-13"):
        for method in ("match", "fullmatch", "search", "findall", "split"):
            found = getattr(ours, method)(text)
            known = getattr(re.compile(theirs, re.IGNORECASE), method)(text)
            assert repr(found) == repr(known)
    assert ours.pattern == theirs
    assert ours.flags == re.compile(theirs, re.IGNORECASE).flags


def test_one_of_bytes():
    assert regex(rb"\x80[\0-\x05]").match(b"\x80\x02.")


def test_nothing_is_compiled_before_it_is_asked():
    broken = regex("(")
    with pytest.raises(re.error):
        broken.match("")

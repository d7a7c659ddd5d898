"""Words and numbers for people; names made harmless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.render.text import NAME_LIMIT, count, plural, printable, size, some, value
from helpers import strategies


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer.weight", "layer.weight"),
        ("größe 日本語 🎲", "größe 日本語 🎲"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\r\tc", "a\\x0ab\\x0d\\x09c"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u202egnp\u2066", "\\u202egnp\\u2066"),
        ("a\u200bb\ufeff\u2028", "a\\u200bb\\ufeff\\u2028"),
        ("a b\xa0c\u3000d", "a b\\xa0c\\u3000d"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\u3164a\u115f\u2800\u034f\ufe0f", "\\u3164a\\u115f\\u2800\\u034f\\ufe0f"),
        ("\U000e0100", "\\U000e0100"),
        ("::error::x", "\\x3a:error::x"),
        (" ::error::x", " \\x3a:error::x"),
        ("\t::error::x", "\\x09::error::x"),
        ("a::b", "a::b"),
        (":a", ":a"),
        ("a##[error]", "a\\x23#[error]"),
        ("###", "\\x23\\x23#"),
        ("# a", "# a"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        ("", ""),
        (7, "7"),
        (None, "None"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown


@given(strategies.texts())
def test_whatever_is_shown_can_be_printed(text):
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")


PLAIN = st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=":#")


@given(st.text(PLAIN, max_size=NAME_LIMIT))
def test_plain_names_stay_as_they_are(text):
    assert printable(text) == text


def test_long_names_are_cut_in_the_middle():
    shown = printable("a" * 1000 + "b" * 1000)
    assert shown == "a" * (NAME_LIMIT // 2) + "…" + "b" * (NAME_LIMIT // 2)
    assert printable("x" * NAME_LIMIT) == "x" * NAME_LIMIT
    assert printable("x" * 50, 10) == "xxxxx…xxxxx"


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"),
     (2941129401, "2.74 GiB"), (2**40, "1 TiB"), (2**60, "1.02e+03 PiB")],
)  # fmt: skip
def test_sizes_have_binary_units(nbytes, shown):
    assert size(nbytes) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (9999, "9999"),
        (10_000, "10 K"),
        (183815168, "183.8 M"),
        (7e9, "7 B"),
        (1e12, "1 T"),
    ],
)
def test_counts_have_decimal_units(number, shown):
    assert count(number) == shown


def test_plurals():
    assert [plural(n, "tensor") for n in (0, 1, 2, 1200)] == [
        "0 tensors",
        "1 tensor",
        "2 tensors",
        "1,200 tensors",
    ]


@pytest.mark.parametrize(
    ("thing", "shown"),
    [(True, "True"), (None, "None"), (0.1 + 0.2, "0.3"), (float("nan"), "nan"), (12, "12"),
     (10**30, "an integer of 100 bits"), ("a\nb", "a\\x0ab"), (1e-9, "1e-09")],
)  # fmt: skip
def test_values_are_short(thing, shown):
    assert value(thing) == shown


def test_some_of_many_names():
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert some([]) == ""

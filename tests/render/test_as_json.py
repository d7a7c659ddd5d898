"""Documents: exact, ASCII, schema first."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.render.as_json import to_json
from ckptool.reports.base import Amount, ErrorReport, Finding
from ckptool.reports.inspect import TensorEntry
from helpers import strategies


def read(value):
    """What another program reads, one that takes no NaN."""
    text = to_json(value)
    assert text.isascii()
    return json.loads(text, parse_constant=pytest.fail)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
def test_numbers_are_exact(number):
    found = read([number])[0]
    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize(
    "number", [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 2**63, -(2**64)]
)
def test_numbers_at_the_edges_are_exact(number):
    (found,) = read([number])
    assert (found, math.copysign(1, found)) == (number, math.copysign(1, number))


@pytest.mark.parametrize(
    ("number", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_what_is_no_number_is_a_word(number, word):
    assert read([number]) == [word]


def test_an_integer_that_nobody_reads_is_in_hexadecimal():
    assert read([1 << 5000]) == [hex(1 << 5000)]


@given(strategies.texts())
def test_texts_are_exact(text):
    assert read([text]) == [text]


@given(strategies.texts())
def test_keys_are_exact(text):
    assert read({text: 1}) == {text: 1}


def test_a_report_begins_with_its_schema():
    document = read(ErrorReport(error={"code": "usage"}))
    assert next(iter(document.items())) == ("schema", "ckptool/error/1")


def test_parts_of_reports_have_no_schema():
    assert read(Finding("CK1", "info", "a", "b")) == {
        "rule": "CK1",
        "severity": "info",
        "address": "a",
        "message": "b",
    }


def test_reports_inside_reports_are_objects():
    assert read({"float32": Amount(1, 4)}) == {"float32": {"count": 1, "bytes": 4}}


def test_what_was_not_asked_for_is_left_out():
    assert "stats" not in read(TensorEntry("a", "float32", (1,), 4, "cpu"))


@pytest.mark.parametrize("thing", [b"bytes", 1 + 2j, object, {1, 2}.__class__])
def test_other_things_are_texts(thing):
    assert read([thing]) == [str(thing)]


def test_tuples_are_arrays():
    assert read({"shape": (1, (2,)), "aliases": ()}) == {"shape": [1, [2]], "aliases": []}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)  # fmt: skip


@given(VALUES.filter(lambda value: "##" not in repr(value)))
def test_documents_are_laid_out_as_python_does_it(value):
    assert to_json(value) == json.dumps(value, indent=2)

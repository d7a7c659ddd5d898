"""Short records in which no unpickler can meet a name are not followed; all others are."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.formats.other_records import may_name
from helpers.thinned import examples

CODES = [bytes([code]) for code in range(256)]
PIECES = [
    b"c",
    b"i",
    b"\n",
    b"os\n",
    b"\x93",
    b"\x82\1",
    b"\x83\1\0",
    b"(",
    b"U\2os",
    b"\x94",
    b".",
]
DRAWN = st.sampled_from([b"little", b"big"]) | st.lists(
    st.sampled_from(CODES + PIECES * 30), max_size=8
).map(b"".join)


class NamedError(BaseException):
    """Error of an unpickler that was to look up a name."""


@pytest.mark.parametrize("unpickler", [pickle.Unpickler, pickle._Unpickler])
@given(data=DRAWN)
@examples(1000)
def test_python_meets_no_name_where_none_is_expected(unpickler, data):
    class Asked(unpickler):
        def find_class(self, module, name):
            raise NamedError

        def get_extension(self, code):
            raise NamedError

    met = False
    try:
        with suppress(Exception):
            Asked(io.BytesIO(data)).load()
    except NamedError:
        met = True
    assert may_name(data) or not met


@pytest.mark.parametrize(
    "data", [b"3\n", b"little", b"big", b"64", b"1", b"12345678901234567890", b""]
)
def test_the_short_records_of_torch_are_passed_over(data):
    assert not may_name(data)


@pytest.mark.parametrize(
    "data", [b"cos\nsystem\n.", b"(ios\nsystem\n.", b"\x8c\2os\x8c\1x\x93", b"\x82\1"]
)
def test_each_way_to_name_something_is_followed(data):
    assert may_name(data)

"""Names of attributes for which an object is asked while it is read."""

from __future__ import annotations

import pytest

from ckptool.formats.pickles.asked import is_asked, is_asked_of_all, is_special


@pytest.mark.parametrize(
    ("name", "special", "asked", "of_all"),
    [
        ("__setstate__", True, True, True),
        ("__dict__", True, True, True),
        ("__pydantic_fields_set__", True, True, False),  # pydantic sets it on each object
        ("append", False, True, True),
        ("close", False, True, True),
        ("keys", False, True, False),
        ("cpu", False, True, False),
        ("detach", False, True, True),
        ("_internal_poll", False, True, True),
        ("learning_rate", False, False, False),
        ("____", False, False, False),
        ("_private", False, False, False),
    ],
)
def test_names_that_are_asked_for(name, special, asked, of_all):
    assert (is_special(name), is_asked(name), is_asked_of_all(name)) == (special, asked, of_all)


def test_a_number_is_no_special_name():
    assert not is_special(12345)

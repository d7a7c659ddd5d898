"""An error is one ``error:`` line, and one ``hint:`` line where there is a hint."""

from __future__ import annotations

import pytest

from ckptool.render.tables_text import show_error
from ckptool.reports.base import ErrorReport


def shown(**error):
    filled = {"code": "damaged", "message": "cut off", "path": None, "address": None, "hint": None}
    return [each.text for each in show_error([ErrorReport(error={**filled, **error})])]


def test_where_stands_before_what():
    assert shown(path="a.pt", address="model") == ["error: a.pt: model: cut off"]
    assert shown() == ["error: cut off"]


def test_a_hint_has_a_line_of_its_own():
    assert shown(hint="get it again") == ["error: cut off", "hint: get it again"]


@pytest.mark.parametrize("key", ["path", "address", "message", "hint"])
def test_no_text_breaks_the_line_or_steers(key):
    for text in shown(**{key: "a\nb\x1b[31m"}):
        assert text.isprintable()

"""What has no address of its own, as a text of bounded length."""

from __future__ import annotations

from ckptool.comparison.objects import keyed_by, object_text
from ckptool.comparison.spelling import LONG_TEXT
from ckptool.formats.base import TensorReader
from ckptool.tree import Opaque

LONG = "x" * (1 << 20)


def test_a_long_argument_of_many_objects_is_not_written_out():
    texts = [object_text(Opaque("a.B", (LONG + end,)), TensorReader()) for end in "01"]
    assert max(map(len, texts)) < LONG_TEXT
    assert texts[0] != texts[1]


def test_a_long_key_of_many_dicts_is_not_written_out():
    texts = [keyed_by({LONG + end: 1, 2: 3}, TensorReader()) for end in "01"]
    assert max(map(len, texts)) < LONG_TEXT
    assert texts[0] != texts[1]

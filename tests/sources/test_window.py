"""A part of a source reads as a source of its own, and its spans are those of the whole."""

from __future__ import annotations

import pytest

from ckptool.errors import DamagedError
from ckptool.sources.local import LocalFile
from ckptool.sources.window import Copied, Window

DATA = bytes(range(100))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "data").write_bytes(DATA)
    with LocalFile(tmp_path / "data") as opened:
        yield opened


def test_offsets_count_from_its_beginning(file):
    window = Window(file, 10, 20)
    assert window.size == 20
    assert window.read(5, 3) == DATA[15:18]
    buffer = bytearray(4)
    window.fill(memoryview(buffer), 0)
    assert bytes(buffer) == DATA[10:14]
    assert Window(file, 90).size == 10


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (101, 0), (50, 51), (-1, 5)])
def test_it_lies_within_its_source(offset, size, file):
    with pytest.raises(DamagedError):
        Window(file, offset, size)


def test_spans_of_a_window_in_a_window_are_those_of_the_file(file):
    inner = Window(Window(file, 10, 50), 5, 20)
    assert inner.span(1, 2) == file.span(16, 2)


def test_what_was_read_already_is_not_read_again(file):
    span = file.span(10, 5)
    copied = Copied(b"abcde", span)
    assert copied.read(1, 2) == b"bc"
    assert copied.span(1, 2) == file.span(11, 2)
    with pytest.raises(DamagedError):
        copied.read(4, 2)

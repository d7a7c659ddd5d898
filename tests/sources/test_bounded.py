"""A file of which few bytes are read until its bound is lifted."""

from __future__ import annotations

import pytest

from ckptool.errors import UnreadableError
from ckptool.sources.local import BoundedFile


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with BoundedFile(path, 10) as file:
        yield file


def test_what_is_read_counts_wherever_it_lies(file):
    assert file.read(0, 4) == bytes(range(4))
    assert file.read(50, 6) == bytes(range(50, 56))
    assert file.taken == 10
    with pytest.raises(UnreadableError, match="more than 10 bytes"):
        file.read(99, 1)


def test_a_buffer_counts_too(file):
    with pytest.raises(UnreadableError, match="more than 10 bytes"):
        file.fill(memoryview(bytearray(11)), 0)


def test_a_bound_that_is_lifted_is_none(file):
    file.lift()
    assert file.read(0, 100) == bytes(range(100))

"""A file that replaces another takes over its mode and attributes."""

from __future__ import annotations

import os
import stat

import pytest

from ckptool.writers.files.attributes import take_after


@pytest.fixture
def new(tmp_path):
    """A new file, open, as it is before it gets its name."""
    fd = os.open(tmp_path / "new", os.O_CREAT | os.O_RDWR, 0o600)
    yield fd
    os.close(fd)


def mode(fd: int) -> int:
    return stat.S_IMODE(os.fstat(fd).st_mode)


@pytest.mark.parametrize("wanted", [0o640, 0o444, 0o600])
def test_the_mode_is_that_of_the_file_replaced(wanted, new, tmp_path):
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(wanted)
    take_after(new, tmp_path / "old")
    assert mode(new) == wanted


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_where_there_was_none_the_umask_decides(umask, new, tmp_path):
    before = os.umask(umask)
    try:
        take_after(new, tmp_path / "nothing")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    assert mode(new) == 0o666 & ~umask


def test_attributes_of_the_user_are_taken_over(new, tmp_path):
    old = tmp_path / "old"
    old.touch()
    try:
        os.setxattr(old, "user.note", b"kept")
    except (OSError, AttributeError):
        pytest.skip("this file system has no attributes")
    take_after(new, old)
    assert os.getxattr(new, "user.note") == b"kept"

"""Runs of bytes between files: each way of copying alone, and the fall from one to the next."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from ckptool.errors import DamagedError
from ckptool.writers.files import copying
from ckptool.writers.files.copying import COPIERS, copy_bytes

SIZE = 3_000_017  # more than a block, and no multiple of anything


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


def copied(source, target, nbytes, **options) -> bytes:
    """What a new file holds after the copy."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    ours, theirs = os.open(source, os.O_RDONLY), os.open(target, flags)
    try:
        copy_bytes(ours, theirs, nbytes, **options)
    finally:
        os.close(ours)
        os.close(theirs)
    return target.read_bytes()


@pytest.fixture(params=COPIERS, ids=lambda copier: copier.__name__.strip("_"))
def copier(request):
    return request.param


def test_each_way_copies_the_bytes(copier, source, tmp_path):
    made = copied(source, tmp_path / "target", SIZE, start=0, at=0, copiers=(copier,))
    assert made == source.read_bytes()


@pytest.mark.parametrize(
    ("start", "at", "nbytes"), [(0, 7, 5), (4096, 4097, 1 << 20), (SIZE - 1, 0, 1)]
)
def test_each_way_copies_from_place_to_place(copier, start, at, nbytes, source, tmp_path):
    made = copied(source, tmp_path / "target", nbytes, start=start, at=at, copiers=(copier,))
    assert made == bytes(at) + source.read_bytes()[start : start + nbytes]


def test_each_way_leaves_the_neighbours(copier, tmp_path):
    (tmp_path / "a").write_bytes(b"abcdefgh")
    (tmp_path / "b").write_bytes(b"01234567")
    ours, theirs = os.open(tmp_path / "a", os.O_RDONLY), os.open(tmp_path / "b", os.O_RDWR)
    copy_bytes(ours, theirs, 3, start=2, at=4, copiers=(copier,))
    os.close(ours)
    os.close(theirs)
    assert (tmp_path / "b").read_bytes() == b"0123cde7"


def test_each_way_notices_that_the_source_ends(copier, source, tmp_path):
    with pytest.raises(DamagedError, match="shorter"):
        copied(source, tmp_path / "target", SIZE + 1, start=0, at=0, copiers=(copier,))


def test_steps_are_told_and_add_up(copier, source, tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "STEP", 100_000)
    told = []
    copied(source, tmp_path / "t", SIZE, start=0, at=0, copiers=(copier,), progress=told.append)
    assert sum(told) == SIZE
    assert max(told) <= 100_000


def test_nothing_to_copy_is_no_call(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert copied(tmp_path / "empty", tmp_path / "target", 0, start=0, at=0, copiers=()) == b""


# ------------------------------------------------------------------------------------- falling back


def failing(number):
    def copier(*_):
        raise OSError(number, os.strerror(number))

    return copier


HERE_NOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@pytest.mark.parametrize("number", HERE_NOT, ids=errno.errorcode.get)
def test_not_here_goes_on_with_the_next(number, source, tmp_path):
    copiers = (failing(number), failing(number), COPIERS[-1])
    made = copied(source, tmp_path / "target", SIZE, start=0, at=0, copiers=copiers)
    assert made == source.read_bytes()


def test_an_answer_of_nothing_goes_on_with_the_next(source, tmp_path):
    """Some file systems answer 0 instead of an error."""
    copiers = (lambda *_: 0, COPIERS[-1])
    made = copied(source, tmp_path / "target", SIZE, start=0, at=0, copiers=copiers)
    assert made == source.read_bytes()


def test_a_way_that_breaks_off_is_taken_up_by_the_next(source, tmp_path):
    calls = []

    def once(ours, theirs, nbytes, start, at):
        if calls:
            raise OSError(errno.EXDEV, "another file system")
        calls.append(start)
        return COPIERS[-1](ours, theirs, min(nbytes, 1000), start, at)

    made = copied(source, tmp_path / "t", SIZE, start=0, at=0, copiers=(once, COPIERS[-1]))
    assert made == source.read_bytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_not_tried_again(number, source, tmp_path):
    with pytest.raises(OSError, match=os.strerror(number)):
        copied(source, tmp_path / "t", SIZE, start=0, at=0, copiers=(failing(number), COPIERS[-1]))


def test_the_last_way_is_not_skipped(source, tmp_path):
    with pytest.raises(OSError, match="Invalid"):
        copied(source, tmp_path / "t", SIZE, start=0, at=0, copiers=(failing(errno.EINVAL),))


def test_between_file_systems(source, tmp_path):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    target = elsewhere / f"ckptool-test-{os.getpid()}"
    try:
        assert copied(source, target, SIZE, start=0, at=0) == source.read_bytes()
    finally:
        target.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------ in memory


def mounts_of(path, monkeypatch, *kinds):
    """A table of mounts in which the file system of ``path`` has these kinds."""
    device = path.stat().st_dev
    rows = [
        f"{nth} 1 {os.major(device)}:{os.minor(device)} / /mnt rw shared:1 - {kind} none rw\n"
        for nth, kind in enumerate(kinds)
    ]
    table = path.with_name("mountinfo")
    table.write_text("25 1 0:4095 / /other rw - tmpfs none rw\nshort\n\n" + "".join(rows))
    monkeypatch.setattr(copying, "MOUNTS", str(table))


@pytest.mark.parametrize(
    ("kinds", "wanted"), [(["ext4"], False), (["tmpfs"], True), (["ramfs"], True), ([], False)]
)
def test_a_file_system_in_memory_is_known_by_its_mount(kinds, wanted, source, monkeypatch):
    mounts_of(source, monkeypatch, *kinds)
    with source.open("rb") as file:
        assert copying.is_in_memory(file.fileno()) is wanted


def test_without_a_table_of_mounts_nothing_is_in_memory(source, tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "MOUNTS", str(tmp_path / "none"))
    with source.open("rb") as file:
        assert not copying.is_in_memory(file.fileno())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="nothing can be reserved")
@pytest.mark.parametrize(("kind", "reserved"), [("ext4", 2), ("tmpfs", 0)])
def test_space_is_reserved_on_a_disk_alone(kind, reserved, source, tmp_path, monkeypatch):
    mounts_of(source, monkeypatch, kind)
    calls = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: calls.append(args))
    pace = copying.Pace()
    with (tmp_path / "out").open("wb") as out:
        pace.before(out.fileno(), 0, copying.STEP)
        pace.before(out.fileno(), copying.STEP, copying.STEP)
    assert len(calls) == reserved

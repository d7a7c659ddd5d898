"""Copies in memory by two threads, of which one maps the output: every byte, or an error."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from ckptool.commands.promote_ema import promote_ema
from ckptool.errors import OutputError
from ckptool.sources.local import LocalFile
from ckptool.writers.files import beside, copying, runs
from ckptool.writers.files import whole_file as whole_files
from ckptool.writers.files.beside import Beside
from ckptool.writers.files.copying import BESIDE, copy_bytes
from ckptool.writers.files.runs import Run
from ckptool.writers.files.whole_file import whole_file
from helpers.making import average_of, save, weights
from helpers.output import environment

INTO_PAGES = BESIDE[0]
PAGE = 4096
CONTENT = random.Random(1).randbytes(50 * PAGE + 7)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


# ------------------------------------------------------------------------------------- into pages


def mapped(source, target, nbytes, start, at, copiers=(INTO_PAGES,)):
    ours, theirs = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR)
    try:
        copy_bytes(ours, theirs, nbytes, start=start, at=at, copiers=copiers)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("start", "at", "nbytes"),
    [(0, 0, len(CONTENT)), (1, PAGE - 1, 2), (5, 3 * PAGE + 9, 20 * PAGE), (PAGE, 0, PAGE)],
)
def test_bytes_are_read_into_a_mapping_and_their_neighbours_stay(
    start, at, nbytes, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(copying, "MAPPED", 2 * PAGE)
    target = tmp_path / "target"
    before = random.Random(2).randbytes(60 * PAGE + 1)
    target.write_bytes(before)
    mapped(source, target, nbytes, start, at)
    after = before[:at] + CONTENT[start : start + nbytes] + before[at + nbytes :]
    assert target.read_bytes() == after


def test_a_file_that_is_too_short_is_written_in_the_next_way(source, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"short")
    mapped(source, target, len(CONTENT), 0, 0, BESIDE)
    assert target.read_bytes() == CONTENT


# A file system of 16 pages, on which a file of 64 has room for its length alone.
FULL = """
import errno, os, sys
from ckptool.writers.files.copying import BESIDE, copy_bytes
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
os.ftruncate(target, 64 * 4096)
try:
    copy_bytes(source, target, 50 * 4096, start=0, at=0, copiers=BESIDE)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_memory_that_is_full_is_an_error_and_no_signal(source, tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a small file system with")
    mountpoint = tmp_path / "tiny"
    mountpoint.mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1" || exit 77; shift; "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", mountpoint,
         sys.executable, "-c", FULL, source, mountpoint / "target"],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("nothing may be mounted here")
    assert (done.returncode, done.stdout) == (0, "ENOSPC\n"), done


# ------------------------------------------------------------------------------------ two threads


@pytest.fixture
def by_two(monkeypatch):
    """Files are taken for files in memory, and small ones for large ones."""
    monkeypatch.setattr(whole_files, "is_in_memory", lambda _fd: True)
    monkeypatch.setattr(whole_files, "usable_cpus", lambda: 2)
    monkeypatch.setattr(whole_files, "WORTH_A_THREAD", PAGE)
    monkeypatch.setattr(runs, "STEP", 3 * PAGE)
    monkeypatch.setattr(copying, "MAPPED", 2 * PAGE)
    monkeypatch.setattr(whole_files, "clone", lambda *_: False)


@pytest.fixture
def who(monkeypatch):
    """The threads that copy: each begins when both are there."""
    names: list[threading.Thread] = []
    both = threading.Barrier(2)
    real = whole_files.copy_bytes

    def noted(*args, **options):
        me = threading.current_thread()
        if me not in names:
            names.append(me)
            both.wait(60)
        real(*args, **options)

    monkeypatch.setattr(whole_files, "copy_bytes", noted)
    return names


def copied(source, target, **options):
    """The content of a copy, and what was told of it."""
    told: list[int] = []
    with LocalFile(source) as file, whole_file(target, force=False) as output:
        later = [file.span(*run) for run in options.pop("later", ())]
        moves = [Run(file.span(*run), at) for run, at in options.pop("moves", ())]
        output.write(b"head")
        output.copy_from(file.span(0, file.size), told.append, later, moves)
    return target.read_bytes(), told


def test_two_threads_copy_all_of_it(source, tmp_path, by_two, who):
    content, told = copied(source, tmp_path / "copy")
    assert content == b"head" + CONTENT
    assert sum(told) == len(CONTENT)
    assert len(who) == 2


def test_runs_come_from_where_they_are_said_to(source, tmp_path, by_two, who):
    later = [(0, PAGE), (9 * PAGE + 5, 20 * PAGE), (len(CONTENT) - 7, 7)]
    sources = [30 * PAGE, 29 * PAGE, 3]
    wanted = bytearray(CONTENT)
    for (at, nbytes), start in zip(later, sources, strict=True):
        wanted[at : at + nbytes] = CONTENT[start : start + nbytes]
    moves = [((start, run[1]), run[0]) for run, start in zip(later, sources, strict=True)]
    content, told = copied(source, tmp_path / "copy", later=later, moves=moves)
    assert content == b"head" + wanted
    assert sum(told) == len(CONTENT)


def test_without_a_second_thread_the_first_does_it(source, tmp_path, by_two, monkeypatch):
    def none_left(*_args, **_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(beside, "Thread", none_left)
    content, told = copied(source, tmp_path / "copy")
    assert content == b"head" + CONTENT
    assert sum(told) == len(CONTENT)


@pytest.mark.parametrize("fails_in_main", [True, False])
def test_an_error_in_either_thread_leaves_nothing(
    fails_in_main, source, tmp_path, by_two, who, monkeypatch
):
    noted = whole_files.copy_bytes

    def failing(*args, **options):
        noted(*args, **options)
        if (threading.current_thread() is threading.main_thread()) is fails_in_main:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_files, "copy_bytes", failing)
    with pytest.raises(OutputError, match="space"):
        copied(source, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == [source]


def test_a_stopped_thread_has_ended_its_step():
    begun, may_end, done = threading.Event(), threading.Event(), []

    def work(item):
        begun.set()
        assert may_end.wait(60)
        done.append(item)

    both = Beside([1, 2, 3], work)
    both.start()
    assert begun.wait(60)
    threading.Timer(0.01, may_end.set).start()
    both.stop()
    assert done == [3]
    assert list(both.first()) == []


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_promotion_by_two_is_that_by_one(suffix, tmp_path, monkeypatch, request):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    path = tmp_path / f"last.{suffix}"
    model = weights(large=torch.arange(20_000.0))
    if suffix == "pt":
        save(path, model)
    else:
        tables = {"model.": model, "ema_model.": average_of(model)}
        save_file({p + n: t for p, table in tables.items() for n, t in table.items()}, path)
    alone, together = tmp_path / f"alone.{suffix}", tmp_path / f"together.{suffix}"
    promote_ema(path, alone, made_at=0)
    request.getfixturevalue("by_two")
    promote_ema(path, together, made_at=0)
    assert together.read_bytes() == alone.read_bytes()

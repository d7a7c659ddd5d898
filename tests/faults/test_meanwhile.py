"""What others do while a run is under way: jobs that write the input, and other runs."""

from __future__ import annotations

import os
import random
import shutil

import pytest
from scenes import PARTIAL

from helpers.making import average_of, save, weights
from helpers.paths import contents
from helpers.tensors import assert_same_tensors, load


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "last.ckpt", weights())


# ---------------------------------------------------------------------------------- jobs that write


def append(path):
    with path.open("ab") as file:
        file.write(b"more")


def shorten(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


def touch(path):
    """A second later: the clocks of file systems tick more slowly than tests run."""
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def write_over(path):
    """As many bytes as before."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"other")
    touch(path)


def replace(path):
    newer = path.with_name("newer")
    save(newer, weights(), epoch=8)
    newer.rename(path)


def remove(path):
    path.unlink()


WRITES = (append, shorten, empty, touch, write_over)
MOVES = (replace, remove)
MOMENTS = {"while it is copied": "copy_file_range", "while it is checked": "pread",
           "while it is synced": "fsync"}  # fmt: skip


@pytest.fixture(params=MOMENTS.values(), ids=MOMENTS)
def when(request, path, monkeypatch):
    """Let something happen to the input at a certain moment of the run that follows."""
    name = request.param
    if not hasattr(os, name):
        pytest.skip(f"this system has no {name}")
    real = getattr(os, name)

    def prepare(change, output):
        waiting, partial = [change], output.with_name(f".{output.name}{PARTIAL}")

        def call(fd, *args):
            if waiting and partial.exists() and (name != "pread" or is_at(partial, fd)):
                waiting.pop()(path)
            return real(fd, *args)

        monkeypatch.setattr(os, name, call)
        return waiting

    return prepare


def is_at(path, fd) -> bool:
    return os.path.samestat(os.fstat(fd), path.stat())


@pytest.mark.parametrize("change", [*WRITES, *MOVES])
def test_an_input_that_changes_is_not_replaced(change, when, path, ckptool, tmp_path):
    expected = tmp_path / "expected" / "last.ckpt"
    expected.parent.mkdir()
    expected.write_bytes(path.read_bytes())
    change(expected)
    waiting = when(change, path)
    done = ckptool("promote-ema", path, "--in-place", "--backup")
    assert not waiting
    assert done.exit_code == 2, done
    assert done.stderr.startswith("error: ")
    assert path.exists() == expected.exists()
    if change is not touch and path.exists():
        assert path.read_bytes() == expected.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"expected"} | {
        p.name for p in expected.parent.iterdir()
    }


@pytest.mark.parametrize("change", WRITES)
def test_an_output_from_an_input_that_changes_is_not_kept(change, when, path, ckptool, tmp_path):
    output = tmp_path / "out.ckpt"
    waiting = when(change, output)
    done = ckptool("promote-ema", path, "-o", output)
    assert not waiting
    assert done.exit_code == 2, done
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("change", MOVES)
def test_an_output_from_an_input_that_is_replaced_is_of_the_old_one(
    change, when, path, ckptool, tmp_path
):
    output = tmp_path / "out.ckpt"
    waiting = when(change, output)
    assert ckptool("promote-ema", path, "-o", output).exit_code == 0
    assert not waiting
    assert_same_tensors(load(output)["state_dict"], average_of(weights()))
    assert "epoch" not in load(output)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("change", WRITES)
def test_extracts_of_an_input_that_changes_are_not_kept(change, suffix, path, ckptool, tmp_path,
                                                        monkeypatch):  # fmt: skip
    output, real = tmp_path / f"out{suffix}", os.pwrite
    waiting = [change]

    def call(*args):
        if waiting:
            waiting.pop()(path)
        return real(*args)

    monkeypatch.setattr(os, "pwrite", call)
    done = ckptool("extract-ema", path, "-o", output)
    assert not waiting
    assert done.exit_code == 2, done
    assert list(tmp_path.iterdir()) == [path]


# --------------------------------------------------------------------------------------- other runs


@pytest.mark.parametrize(
    "args", [("--in-place",), ("--in-place", "--backup"), ("-o", "out.ckpt", "--force")]
)
def test_a_second_run_gives_way_to_the_first(args, path, ckptool, waiting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = waiting("promote-ema", "last.ckpt", *args)
    before = contents(tmp_path)
    second = ckptool("promote-ema", "last.ckpt", *args)
    assert second.exit_code == 2
    assert "another run is writing it" in second.stderr
    assert contents(tmp_path) == before
    assert first.go() == 0
    written = path if "--in-place" in args else tmp_path / "out.ckpt"
    assert_same_tensors(load(written)["state_dict"], average_of(weights()))


def test_a_run_that_was_overtaken_keeps_what_the_other_made(path, ckptool, waiting, tmp_path):
    """As when locks do not reach from one machine to another: only the last look can notice."""
    first = waiting("promote-ema", path, "--in-place")
    (tmp_path / f".last.ckpt{PARTIAL}").rename(tmp_path / "moved")
    assert ckptool("promote-ema", path, "--in-place").exit_code == 0
    promoted = path.read_bytes()
    (tmp_path / "moved").rename(tmp_path / f".last.ckpt{PARTIAL}")
    assert first.go() == 2
    assert path.read_bytes() == promoted
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ("promote-ema", "last.ckpt", "--in-place"),
        ("promote-ema", "last.ckpt", "-o", "out.ckpt"),
        ("promote-ema", "last.ckpt", "-o", "out.ckpt", "--force"),
        ("extract-ema", "last.ckpt", "-o", "out.pt", "--force"),
    ],
    ids=" ".join,
)
def test_many_runs_at_once_leave_one_whole_file(args, stage):
    chance = random.Random(3)
    wanted = set()
    for _ in range(8):
        for path in stage.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (stage.folder / "last.ckpt").write_bytes(stage.inputs["last.ckpt"])
        done = stage.driver.at_once(
            stage.folder, [args] * chance.randint(2, 6), seconds=0, signal=0
        )
        assert {one.code for one in done} <= {0, 2}, done
        assert any(one.code == 0 for one in done), done
        names = {"last.ckpt", *args[3:4]}
        assert {path.name for path in stage.folder.iterdir()} == names
        wanted.add((stage.folder / (args[3] if args[3:] else "last.ckpt")).read_bytes())
    assert len(wanted) == 1

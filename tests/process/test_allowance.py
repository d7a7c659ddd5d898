"""The bound of all work: what the files allow, and the end of a process that takes more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ckptool.cli import _tell_limit
from ckptool.errors import UnsupportedError
from ckptool.process.allowance import LARGER, MEMORY, SECONDS, SHARE, Allowance
from ckptool.sources.local import BoundedFile, LocalFile
from ckptool.sources.places import entries
from helpers.output import environment
from helpers.paths import FIXTURES

LAST = FIXTURES / "genuine" / "lightning" / "last.ckpt"
has_timers = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer of the CPU")


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [
        ([], 1),
        ([0], 1),
        ([SHARE], 1),
        ([1, 1, SHARE], 3),
        ([SHARE + 1], 2 * LARGER),
        ([10 * SHARE], 10 * LARGER),
        ([1, SHARE + 1], 1 + 2 * LARGER),
    ],
)
def test_each_file_allows_the_more_the_larger_it_is(sizes, shares):
    allowance = Allowance()
    for identity, size in enumerate(sizes):
        allowance.grant("a", identity, size)
    allowance.check(SECONDS * shares, MEMORY * shares)
    with pytest.raises(UnsupportedError, match="seconds of CPU time"):
        allowance.check(SECONDS * shares + 0.1, 0)
    with pytest.raises(UnsupportedError, match="GiB of memory"):
        allowance.check(0, MEMORY * shares + 1)


def test_a_file_that_is_opened_again_allows_nothing_more():
    allowance = Allowance()
    allowance.grant("a", "identity", 5)
    allowance.grant("another name of it", "identity", 5)
    assert allowance.shares == 1


def test_files_that_are_opened_count_and_sidecar_files_do_not(tmp_path, monkeypatch):
    allowance = Allowance()
    monkeypatch.setattr("ckptool.sources.local.ALLOWANCE", allowance)
    (tmp_path / "sidecar").write_bytes(b"a")
    with LocalFile(LAST):
        assert allowance.shares == 1
    with BoundedFile(tmp_path / "sidecar", 10) as sidecar:
        sidecar.lift()
        assert allowance.shares == 1
    assert allowance.last == str(LAST)


def test_a_directory_of_many_names_allows_the_work_for_them(tmp_path, monkeypatch):
    """Such as the images beside the checkpoints of a run."""
    allowance = Allowance()
    monkeypatch.setattr("ckptool.sources.places.ALLOWANCE", allowance)
    monkeypatch.setattr("ckptool.process.allowance.NAMES", 4)
    for name in "abcdefghi":
        (tmp_path / name).touch()
    assert len(entries(tmp_path)) == len(entries(tmp_path)) == 9
    assert allowance.shares == 2


def test_processes_that_share_the_work_share_the_time(monkeypatch):
    clock = iter([2.0, 2.0, 5.0, 11.0])
    monkeypatch.setattr("ckptool.process.allowance._own_seconds", lambda: next(clock))
    allowance = Allowance()
    with allowance.divided(3):  # 2 seconds before, and 3 of each process
        assert allowance.taken == 2 + 3 * 3
    assert allowance.taken == 11  # with those of the children that have ended


ENDING = """
import os, signal
from ckptool.process import allowance, signals
signals.end_cleanly()
allowance.process_time = lambda: 100.0
allowance.keep_within(lambda error: os.write(1, f"told {error.message}\\n".encode()))
with signals.undone_at_end(lambda: os.write(1, b"undone\\n")):
    with signals.held():
        signal.raise_signal(signal.SIGPROF)
        os.write(1, b"the step is whole\\n")
    os.write(1, b"never\\n")
"""


@has_timers
def test_the_process_ends_as_by_a_signal_and_says_why():
    done = subprocess.run(
        [sys.executable, "-c", ENDING], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    whole, undone, told = done.stdout.splitlines()
    assert (whole, undone) == ("the step is whole", "undone")
    assert told.startswith("told the command took 100.0 seconds of CPU time")
    assert done.returncode == 2


# The first look is at a thousandth of a second of the CPU, which every command takes.
USED_UP = """
import sys
from ckptool.process import allowance
allowance.SECONDS, allowance.FIRST, allowance.EVERY = 0.0, 1e-3, 1e-3
sys.argv = ["ckptool", *sys.argv[1:]]
from ckptool.cli import run
run()
"""


def used_up(*args, **variables):
    return subprocess.run(
        [sys.executable, "-c", USED_UP, *map(str, args)],
        env=environment() | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


@has_timers
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_command_that_takes_too_long_is_refused_and_leaves_no_file(form, tmp_path):
    out = tmp_path / "out.safetensors"
    done = used_up("extract-ema", LAST, "-o", out, "--format", form)
    assert done.returncode == 2
    said = done.stderr if form == "text" else done.stdout
    assert "seconds of CPU time, more than any file of this size needs" in said
    assert "CKPTOOL_LIMITS=off" in said
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_end_amid_an_import_is_told_without_the_module(monkeypatch, capfd):
    """Half of a module lacks the functions that render the error."""

    def rendered(*_):
        raise AttributeError("partially initialized module")

    monkeypatch.setattr("ckptool.cli.rendered", rendered)
    monkeypatch.setattr(sys, "argv", ["ckptool", "inspect", "a.pt", "--json"])
    _tell_limit(UnsupportedError("it took too long", hint="take a part"))
    assert capfd.readouterr() == ("", "error: it took too long\nhint: take a part\n")


@has_timers
def test_the_limits_can_be_lifted():
    done = used_up("inspect", LAST, CKPTOOL_LIMITS="off")
    assert done.returncode == 0, done.stderr


@has_timers
def test_a_shell_that_asks_for_completions_gets_no_words():
    done = used_up(
        _CKPTOOL_COMPLETE="complete_bash", COMP_WORDS=f"ckptool inspect {LAST}#", COMP_CWORD="2"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")

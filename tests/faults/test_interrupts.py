"""A run that is interrupted exits with 130, also in its first moments; a terminal gets a line."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib

import pytest

from helpers.making import save, weights
from helpers.output import environment
from helpers.paths import REPOSITORY, contents

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# ``python -m ckptool`` that gets a signal when it first looks for a module.
EARLY = """
import os, runpy, sys

name, number = sys.argv.pop(1), int(sys.argv.pop(1))

class Finder:
    def find_spec(found, path=None, target=None):
        if found == name:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder)
runpy.run_module("ckptool", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "last.ckpt", weights())


# ----------------------------------------------------------------------------- in the first moments


@pytest.mark.parametrize("number", CAUGHT)
@pytest.mark.parametrize(
    "module", ["ckptool.cli", "ckptool.cli.catalogue", "ckptool.commands.promote_ema", "numpy"]
)
def test_an_interrupt_while_modules_are_imported_is_silent(module, number, path, tmp_path):
    before = contents(tmp_path)
    command = [sys.executable, "-c", EARLY, module, str(int(number))]
    done = subprocess.run(
        [*command, "promote-ema", path, "--in-place"],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert contents(tmp_path) == before


def test_the_console_script_begins_like_the_module():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ckptool": "ckptool.__main__:run"}


# ------------------------------------------------------------------------------------ signals again


@pytest.mark.parametrize("number", CAUGHT)
def test_an_interrupt_is_silent_and_leaves_nothing(number, path, tmp_path, waiting):
    before = contents(tmp_path)
    run = waiting("promote-ema", path, "--in-place", "--backup")
    run.signal(number)
    assert run.go() == 130
    assert (run.stdout, run.stderr) == ("", "")
    assert contents(tmp_path) == before


def test_signals_that_come_together_end_it_once(path, tmp_path, waiting):
    before = contents(tmp_path)
    run = waiting("promote-ema", path, "-o", tmp_path / "out.ckpt")
    for number in CAUGHT * 3:
        run.signal(number)
    assert run.go() == 130
    assert run.stderr == ""
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", CAUGHT)
def test_what_is_ignored_from_outside_stays_ignored(number, path, tmp_path, waiting):
    """As under nohup, or for Ctrl-C in the background."""
    ignored = ("sh", "-c", f'trap "" {number:d}; exec "$@"', "sh")
    run = waiting("promote-ema", path, "-o", tmp_path / "out.ckpt", prefix=ignored)
    run.signal(number)
    assert run.go() == 0
    assert (tmp_path / "out.ckpt").exists()


# ----------------------------------------------------------------------------------------- progress


@pytest.fixture
def terminal():
    """A terminal for stderr; ``read()`` gives what it was shown, when all have closed it."""
    master, slave = pty.openpty()

    def read() -> str:
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 1 << 16):
                shown += part
        except OSError as error:  # how Linux says that the other end is closed
            if error.errno != errno.EIO:
                raise
        return shown.decode()

    yield slave, read
    os.close(master)


WIPED = "\r\x1b[K"


INTERRUPTED = "interrupted: no unfinished file is left\r\n"


def assert_shown_and_wiped(shown, verb):
    lines = shown.split("\r")
    share, whole, left = r"(\d+%, )?", r"( of [\d,]+ MiB)?", r"(, [\d:]+( s)? left)?"
    line = rf"{verb}: {share}[\d,]+ MiB{whole}, [\d,]+ MiB/s{left} \x1b\[K"
    assert re.fullmatch(line, lines[1])
    assert shown.endswith(WIPED)
    assert shown.count(WIPED) == 1


@pytest.mark.parametrize(
    ("command", "verb"), [("promote-ema", "promoting"), ("extract-ema", "extracting")]
)
def test_progress_is_shown_on_a_terminal_and_wiped(
    command, verb, path, tmp_path, waiting, terminal
):
    slave, read = terminal
    run = waiting(command, path, "-o", tmp_path / "out.pt", stderr=slave)
    assert run.go() == 0
    assert_shown_and_wiped(read(), verb)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, "")])
def test_progress_is_wiped_when_interrupted_and_one_line_says_so(
    number, said, path, tmp_path, waiting, terminal
):
    slave, read = terminal
    run = waiting("promote-ema", path, "-o", tmp_path / "out.pt", stderr=slave)
    run.signal(number)
    assert run.go() == 130
    shown = read()
    assert shown.endswith(said)
    assert_shown_and_wiped(shown.removesuffix(said), "promoting")


def test_forks_that_get_the_signal_too_say_nothing(path, tmp_path, terminal):
    """Ctrl-C goes to all processes of the terminal's group."""
    slave, read = terminal
    code = (
        "import os, signal, sys, time\n"
        "from ckptool.cli.output import tell_interrupt\n"
        "from ckptool.process.signals import end_cleanly\n"
        "end_cleanly(tell_interrupt)\n"
        "child = os.fork()\n"
        "os.kill(os.getpid(), signal.SIGINT) if child == 0 else os.waitpid(child, 0)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), stderr=slave, timeout=60, check=False)
    assert (done.returncode, read()) == (130, INTERRUPTED)


def test_nothing_is_shown_on_a_pipe(path, tmp_path, waiting):
    run = waiting("promote-ema", path, "-o", tmp_path / "out.pt")
    assert run.go() == 0
    assert run.stderr == ""

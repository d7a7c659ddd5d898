"""Forked processes: all results in order, every error told, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from ckptool.errors import CkptError, DamagedError
from ckptool.process.forks import can_fork, work_in_forks
from helpers.output import environment
from helpers.paths import FIXTURES

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # pytest has threads
]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_results_are_in_order_and_every_process_has_a_share(count):
    items, told = list(range(12)), []
    results = work_in_forks(count, items, lambda item: [item, os.getpid()], told.append)
    assert [item for item, _ in results] == items
    assert len({process for _, process in results}) == count
    assert told == [item for item, process in results if process == os.getpid()]


def test_ended_children_may_be_ignored():
    """As a supervisor can leave it to its children: then nobody may wait for them."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert work_in_forks(3, range(6), lambda item: item) == [*range(6)]
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_further_processes_this_one_does_it_all(monkeypatch):
    def no_process():
        raise BlockingIOError("Resource temporarily unavailable")

    told = []
    monkeypatch.setattr(os, "fork", no_process)
    assert work_in_forks(3, range(6), lambda item: item, told.append) == [*range(6)] == told


def test_an_error_of_a_child_is_raised_here():
    def fail_elsewhere(item):
        if item == 3:
            raise DamagedError("too short", path=Path("x.pt"), hint="get it again")

    with pytest.raises(DamagedError, match=r"x\.pt: too short") as error:
        work_in_forks(4, range(4), fail_elsewhere)
    assert error.value.hint == "get it again"


def test_a_child_that_is_killed_is_no_answer():
    parent = os.getpid()

    def end_elsewhere(item):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(CkptError, match="ended too soon"):
        work_in_forks(2, range(4), end_elsewhere)


def test_no_process_is_left_when_this_one_is_interrupted():
    parent = os.getpid()

    def stop(_item):
        if os.getpid() == parent:
            raise KeyboardInterrupt
        time.sleep(60)

    before = children_of(parent)
    with pytest.raises(KeyboardInterrupt):
        work_in_forks(3, range(6), stop)
    assert children_of(parent) == before


def children_of(process: int) -> set[int]:
    """The processes whose parent it is."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = status.read_text()
            if int(text.rpartition(")")[2].split()[1]) == process:
                found.add(int(status.parent.name))
    return found


def test_a_process_with_threads_is_not_forked():
    stop = Event()
    thread = Thread(target=stop.wait)
    thread.start()
    try:
        assert not can_fork()
    finally:
        stop.set()
        thread.join()


ENDLESS = """
import time
from ckptool.process.forks import work_in_forks
def wait(item):
    print("begun", flush=True)
    time.sleep(0.05)
work_in_forks(3, range(100_000), wait)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_the_process_that_forked_them(number):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    children = children_of(process.pid)
    assert len(children) == 2
    process.send_signal(number)
    process.wait()
    while any(map(is_running, children)):
        time.sleep(0.01)
    process.stdout.close()


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"


DIFF = """
import sys
from ckptool.comparison import engine
from ckptool.cli import main
engine.TASK, engine.SHARE = 1, int(sys.argv[1])
forked, original = [], engine.work_in_forks
def counted(*args):
    forked.append(args)
    return original(*args)
engine.work_in_forks = counted
code = main(["diff", *sys.argv[2:], "--json"])
sys.stdout.flush()
print(len(forked), file=sys.stderr)
sys.exit(code)
"""


def run_diff(share: int, *paths: Path) -> tuple[int, dict[str, object], int]:
    """The exit code, the document, and how often processes were forked for so many tasks each."""
    command = [sys.executable, "-c", DIFF, str(share), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    return done.returncode, json.loads(done.stdout), int(done.stderr.split()[-1])


PAIRS = {
    "two that differ": ("ema/has_ema/late.pt", "ema/has_ema/partial.pt"),
    "two that are equal": ("ema/has_ema/late.pt", "ema/has_ema/late.pt"),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_forked_processes_find_what_one_finds(pair, tmp_path):
    one, other = (FIXTURES / name for name in pair)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(other.read_bytes())
    code, found, forked = run_diff(1, one, copy)
    alone, wanted, never = run_diff(1 << 30, one, copy)
    assert (code, found) == (alone, wanted)
    assert never == 0
    assert forked > 0


SHARED = """
import signal
from ckptool.errors import UnsupportedError
from ckptool.process import allowance, forks
allowance.keep_within(lambda error: None)
def work(item):
    if item:  # the first is this process's own, the second the child's
        allowance.process_time = lambda: allowance.SECONDS * 0.6
        signal.raise_signal(signal.SIGPROF)
    return item
try:
    forks.work_in_forks(2, [0, 1], work)
except UnsupportedError as error:
    print(error.message)
"""


def test_forked_processes_keep_within_the_time_of_the_command_together():
    """Two of them that take six tenths each are as slow as one that takes all and more."""
    done = subprocess.run(
        [sys.executable, "-c", SHARED], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "seconds of CPU time, more than any file of this size needs" in done.stdout, done.stderr

"""One stage for all fault tests, and runs that wait at a certain moment."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scenes import Stage, make_inputs, quick_folder

from helpers.output import environment

# The real command, which waits before its file is put in place until a line comes.
WAITING = """
import os, sys
from ckptool import cli
from ckptool.cli import output

output.PROGRESS_AFTER = output.PROGRESS_EVERY = 0
real = os.fsync

def wait(fd):
    print("written", flush=True)
    sys.stdin.readline()
    os.fsync = real
    real(fd)

os.fsync = wait
cli.run()
"""


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """Plays a scene with a fault in it, and tells what lies there afterwards."""
    inputs = make_inputs(tmp_path_factory.mktemp("inputs"))
    with quick_folder(tmp_path_factory.mktemp("stage")) as folder:
        stage = Stage(folder, inputs)
        yield stage
        stage.close()


class Waiting:
    """A run that has written its file and waits."""

    def __init__(self, *args: object, prefix: tuple[str, ...] = (), stderr=subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", WAITING, *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment(),
            text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == "written\n"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def go(self) -> int:
        """Let it go on to its end; its exit code."""
        self.stdout, self.stderr = self.process.communicate("go\n", timeout=60)
        return self.process.returncode


@pytest.fixture
def waiting():
    """Start a run that will have written its file and wait."""
    runs = []

    def start(*args, **options):
        runs.append(Waiting(*args, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.communicate()

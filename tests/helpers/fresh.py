"""Processes that are fresh but for torch: forked from one that imported torch and did nothing else.

To import torch takes two seconds of the processor, and a fork some milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.output import environment

SERVER = """
import json, os, sys, traceback
import torch

for line in sys.stdin:
    code, folder, printed = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (0, 1, 2):
            os.dup2(output, stream)
        status = 0
        try:
            exec(compile(code, "<fresh>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ran(NamedTuple):
    """How code ended in a process of its own."""

    exit_code: int
    printed: str  # on stdout and stderr


class FreshTorch:
    """Runs Python code, each time in a process that has imported torch and nothing of ours."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder

    def __call__(self, code: str, folder: Path | None = None) -> Ran:
        printed = self._folder / "printed.txt"
        print(
            json.dumps([code, str(folder or self._folder), str(printed)]),
            file=self._server.stdin, flush=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        exit_code = int(self._server.stdout.readline())
        return Ran(exit_code, printed.read_text(errors="replace"))


@contextlib.contextmanager
def running_torch() -> Iterator[FreshTorch]:
    """Yield the runner; the process that it forks ends afterwards."""
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, env=environment(), text=True, **pipes) as server,
    ):
        yield FreshTorch(server, Path(folder))
        assert server.stdin is not None
        server.stdin.close()

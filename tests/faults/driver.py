"""Runs the command line again and again in forks of one warm process, each with a fault of its own.

A try costs milliseconds instead of an interpreter's start. Requests and answers are lines of JSON;
a request names the folder, the arguments and the fault:

* ``{"at": 7, "signal": 15}``: the process gets the signal before its 7th call to the system,
  ``"after": true``: after it;
* ``{"at": 7, "errno": 28}``: that call fails, ``"ever": true``: and all later ones of its name;
* ``{"opcode": 700, "signal": 15}``: the signal comes at an instruction of the writers;
* ``{"seconds": 0.01, "signal": 9}``: the signal comes from outside.

Calls are the functions of ``os`` and ``fcntl`` below, as the main thread makes them. Steps are
small, so that small files are copied in several.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from ckptool.cli import main
from ckptool.interrupts import ENDING, end_cleanly
from ckptool.writers import copying

CALLS = {
    os: (
        "open", "close", "pread", "pwrite", "copy_file_range", "sendfile", "posix_fallocate",
        "posix_fadvise", "fsync", "ftruncate", "fchmod", "fchown", "rename", "link", "unlink",
        "lseek", "stat", "lstat", "fstat", "statvfs", "access", "readlink", "umask", "listxattr",
        "getxattr", "setxattr",
    ),
    fcntl: ("flock", "ioctl"),
}  # fmt: skip
TRACED = ("ckptool/writers/base.py", "ckptool/interrupts.py", "contextlib.py")


class Calls:
    """Counts what is called, and lets the fault happen when its turn comes."""

    def __init__(self, fault: dict, log: int) -> None:
        self.fault, self.log = fault, log
        self.count = 0
        self.failing: str | None = None

    def patch(self) -> None:
        for module, names in CALLS.items():
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, self.wrapped(name, getattr(module, name)))

    def wrapped(self, name: str, real):
        write, main_thread = os.write, threading.main_thread()

        def call(*args, **kwargs):
            if threading.current_thread() is not main_thread:
                return real(*args, **kwargs)
            self.count += 1
            write(self.log, f"{name}\n".encode())
            is_it = self.count == self.fault.get("at")
            if "errno" in self.fault:
                self.fail(name, is_it)
            elif is_it and not self.fault.get("after"):
                os.kill(os.getpid(), self.fault["signal"])
            result = real(*args, **kwargs)
            if is_it and self.fault.get("after"):
                os.kill(os.getpid(), self.fault["signal"])
            return result

        return call

    def fail(self, name: str, is_it: bool) -> None:
        if is_it and self.fault.get("ever"):
            self.failing = name
        if is_it or name == self.failing:
            raise OSError(self.fault["errno"], os.strerror(self.fault["errno"]))


def signal_at_opcode(fault: dict, log: int) -> None:
    """The signal at the n-th instruction in the modules that must not be divided."""
    count = 0

    def trace(frame, event, _argument):
        nonlocal count
        if not frame.f_code.co_filename.endswith(TRACED):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == fault["opcode"]:
                os.kill(os.getpid(), fault["signal"])
        return trace

    def finish(code: int, leave=os._exit) -> None:
        os.write(log, f"{count}\n".encode())
        leave(code)

    os._exit = finish
    sys.settrace(trace)


def run(request: dict, log: int, out: int, err: int) -> None:
    """The child: the console script, as a fresh process would run it."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["folder"])
    sys.argv = ["ckptool", *request["args"]]
    fault = request["fault"]
    if "opcode" in fault:
        signal_at_opcode(fault, log)
    elif "seconds" not in fault:
        Calls(fault, log).patch()
    from ckptool.__main__ import run as script

    script()


def attempt(request: dict) -> dict:
    """Fork, run, wait; what came of it."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        begun = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until the child can take them
        child = os.fork()
        if not child:
            try:
                end_cleanly()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
                run(request, *(file.fileno() for file in files))
            finally:
                os._exit(99)  # the script never returns
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        fault = request["fault"]
        if "seconds" in fault:
            time.sleep(fault["seconds"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, fault["signal"])
        status = os.waitpid(child, 0)[1]
        for file in files:
            file.seek(0)
        log, out, err = (file.read().decode(errors="replace") for file in files)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "calls": log.split(),
            "stdout": out,
            "stderr": err,
            "seconds": time.monotonic() - begun,
        }


def warm(sample: str) -> None:
    """Import what the commands import when they run."""
    with tempfile.TemporaryDirectory() as folder:
        for command, suffix in (("promote-ema", "pt"), ("extract-ema", "safetensors")):
            with contextlib.redirect_stdout(io.StringIO()):
                code = main([command, sample, "-o", str(Path(folder, f"out.{suffix}"))])
            assert code == 0


if __name__ == "__main__":
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    copying.STEP, copying.WORTH_RESERVING = 1 << 14, 1 << 12
    warm(sys.argv[1])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(attempt(json.loads(line))) + "\n")
        sys.stdout.flush()

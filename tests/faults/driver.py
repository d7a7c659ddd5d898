"""Runs the command line again and again in forks of one warm process, each with a fault of its own.

A try costs milliseconds instead of an interpreter's start. Requests and answers are lines of JSON;
a request is a list of runs to start at once, each with its folder, its arguments and its fault:

* ``{"at": 7, "signal": 15}``: the process gets the signal before its 7th call to the system,
  ``"after": true``: after it;
* ``{"at": 7, "errno": 28}``: that call fails;
* ``{"name": "pwrite", "errno": 28}``: all calls of that name fail;
* ``{"opcode": 700, "signal": 15}``: the signal comes at an instruction of the writers;
* ``{"seconds": 0.01, "signal": 9}``: the signal comes from outside;
* ``{"free": 10}``: the file system says that so many bytes are free;
* ``{"file_size": 4096}``: the largest file that the process may write;
* ``{"user": [1001, 1002]}``: the process has the rights of this user, who is in this group too;
* ``{"witness": "last.ckpt"}``: how the file is opened, and whether it is mapped when all is done.

Calls are the functions of ``os``, ``fcntl`` and ``mmap`` below. Where calls or instructions are
counted, what threads would do is done when it is asked for, so that the n-th is always the same;
real threads are met by signals from outside and by the other faults. Steps are small, so that small
files are copied in several.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import gc
import io
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptool.cli import main
from ckptool.process.signals import ENDING, end_cleanly
from ckptool.tensors import blocks as numerics
from ckptool.tensors import scan, windows
from ckptool.writers.files import beside, copying, runs
from ckptool.writers.files import whole_file as base

CALLS = {
    os: (
        "open", "close", "pread", "preadv", "pwrite", "copy_file_range", "sendfile",
        "posix_fallocate", "posix_fadvise", "fsync", "ftruncate", "fchmod", "fchown", "rename",
        "link", "unlink", "mkdir", "rmdir",
        "lseek", "stat", "lstat", "fstat", "statvfs", "access", "readlink", "umask", "listxattr",
        "getxattr", "setxattr",
    ),
    fcntl: ("flock", "ioctl"),
    mmap: ("mmap",),
}  # fmt: skip
TRACED = (
    "ckptool/writers/files/whole_file.py", "ckptool/writers/files/partial.py",
    "ckptool/writers/files/beside.py", "ckptool/process/signals.py", "contextlib.py",
)  # fmt: skip
NOBODY_RAN = 99  # exit code of a child that came back from the script

Fault = dict[str, Any]


class AtOnce(concurrent.futures.Executor):
    """A pool of threads without threads."""

    def __init__(self, *_args, **_kwargs) -> None:
        pass

    def submit(self, task, /, *args, **kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(task(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as a thread hands it over
            future.set_exception(error)
        return future


def half_at_once(self: beside.Beside) -> None:
    """A thread that has done half of the work when it is started, and no more."""
    left = [self._items.popleft() for _ in range(len(self._items) // 2)]
    self._run()
    if self._error is None:
        self._items.extend(left)


# ------------------------------------------------------------------------------------------- faults


class Calls:
    """Counts what is called, writes it down, and lets the fault happen when its turn comes."""

    def __init__(self, fault: Fault, log: Callable[[str], None]) -> None:
        self.fault, self.log = fault, log
        self.count = 0

    def patch(self) -> None:
        concurrent.futures.ThreadPoolExecutor = scan.ThreadPoolExecutor = AtOnce
        beside.Beside.start = half_at_once
        for module, names in CALLS.items():
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, self.wrapped(name, getattr(module, name)))

    def wrapped(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            self.count += 1
            self.log(name)
            is_it = self.count == self.fault.get("at") or name == self.fault.get("name")
            if is_it and not self.fault.get("after"):
                self.happen()
            try:
                return real(*args, **kwargs)
            finally:
                if is_it and self.fault.get("after"):
                    self.happen()

        return call

    def happen(self) -> None:
        if "errno" in self.fault:
            raise OSError(self.fault["errno"], os.strerror(self.fault["errno"]))
        os.kill(os.getpid(), self.fault["signal"])


def at_opcode(fault: Fault, log: Callable[[str], None]) -> None:
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

    beside.Beside.start = half_at_once
    at_exit(lambda: log(str(count)))
    sys.settrace(trace)


def witness(fault: Fault, log: Callable[[str], None]) -> None:
    """Writes down ``open FLAGS`` and ``mapped`` of one file."""
    path = str(Path(fault["witness"]).resolve())

    def hook(event, args):
        if event == "open" and os.path.realpath(os.fsdecode(args[0])) == path:
            log(f"open:{args[2] & (os.O_ACCMODE | os.O_TRUNC | os.O_APPEND)}")

    def look():
        if path in Path("/proc/self/maps").read_text():
            log("mapped")

    sys.addaudithook(hook)
    at_exit(look)


def at_exit(task: Callable[[], None], leave: Callable = os._exit) -> None:
    def finish(code: int) -> None:
        task()
        leave(code)

    os._exit = finish


def become(fault: Fault, _log) -> None:
    user, group = fault["user"]
    os.setgroups([group])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def limit_files(fault: Fault, _log) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_size"],) * 2)


def pretend_free(fault: Fault, log) -> None:
    shutil.disk_usage = lambda _: shutil._ntuple_diskusage(1 << 40, 1 << 40, fault["free"])
    Calls({}, log).patch()


# Which key of a fault brings it about; without any, the calls are counted.
FAULTS: dict[str, Callable[[Fault, Callable[[str], None]], None]] = {
    "seconds": lambda *_: None,
    "opcode": at_opcode,
    "free": pretend_free,
    "file_size": limit_files,
    "user": become,
    "witness": witness,
}


# --------------------------------------------------------------------------------------------- runs


def child(request: dict, streams: list[int]) -> None:
    """The console script, as a fresh process would run it; does not return."""
    log, out, err = streams
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["folder"])
    sys.argv = ["ckptool", *request["args"]]
    fault, write = request["fault"], os.write
    bring = next((FAULTS[key] for key in fault if key in FAULTS), None)
    if bring is None:
        Calls(fault, lambda word: write(log, f"{word}\n".encode())).patch()
    else:
        bring(fault, lambda word: write(log, f"{word}\n".encode()))
    from ckptool.__main__ import run as script

    script()


class Run:
    """A fork that is under way."""

    def __init__(self, request: dict) -> None:
        self.fault = request["fault"]
        self.files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115 - see wait
        self.begun = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until the child can take them
        self.child = os.fork()
        if not self.child:
            with contextlib.suppress(BaseException):
                end_cleanly()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
                child(request, [file.fileno() for file in self.files])
            os._exit(NOBODY_RAN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def wait(self) -> dict:
        """What came of it."""
        if "seconds" in self.fault:
            time.sleep(self.fault["seconds"])
            os.kill(self.child, self.fault["signal"])  # a child that ended waits to be waited for
        status = os.waitpid(self.child, 0)[1]
        took = time.monotonic() - self.begun
        log, out, err = map(_text, self.files)
        code = os.waitstatus_to_exitcode(status)
        return {
            "code": code, "calls": log.split(), "stdout": out, "stderr": err, "seconds": took,
        }  # fmt: skip


def _text(file) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


def warm(sample: str) -> None:
    """Import what the commands import when they run; without rights they may not be able to."""
    import ml_dtypes  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        for command, suffix in (("promote-ema", "pt"), ("extract-ema", "safetensors")):
            with contextlib.redirect_stdout(io.StringIO()):
                code = main([command, sample, "-o", str(Path(folder, f"out.{suffix}"))])
            assert code == 0


if __name__ == "__main__":
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    base.STEP = copying.STEP = runs.STEP = 1 << 14
    base.WORTH_A_THREAD = copying.MAPPED = 1 << 13
    copying.WORTH_RESERVING = 1 << 12
    numerics.BLOCK = windows.BLOCK = 1 << 13  # bytes that are read, cast and written at a time
    warm(sys.argv[1])
    gc.freeze()  # children touch less of what they share
    for line in sys.stdin:
        runs = [Run(request) for request in json.loads(line)]
        sys.stdout.write(json.dumps([run.wait() for run in runs]) + "\n")
        sys.stdout.flush()

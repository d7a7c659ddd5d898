"""A system like Windows, as far as Python shows it: without the modules and calls of POSIX.

``python -m helpers.windows inspect PATH`` runs the command line there, and tests run there with
``PYTHONPATH=tests pytest -p helpers.windows``. Paths stay those of this system.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys

# The libraries that look at the system once, when they are imported.
import concurrent.futures.thread  # noqa: F401  # isort: skip
import shutil  # noqa: F401
import subprocess  # noqa: F401
import tempfile  # noqa: F401

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "pty")
CALLS = (
    "pread", "preadv", "pwrite", "pwritev", "copy_file_range", "posix_fallocate", "posix_fadvise",
    "sched_getaffinity", "fchown", "fchmod", "chown", "mkfifo",
    "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY",
)  # fmt: skip
SIGNALS = ("SIGHUP", "SIGALRM", "SIGUSR1")


def _open_without_proc(file, *args, **options):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(file)
    return _open(file, *args, **options)


_open = builtins.open


def take_away() -> None:
    """Take away what Windows lacks."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    builtins.open = _open_without_proc  # type: ignore[assignment]
    for module, names in ((os, CALLS), (signal, SIGNALS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


def pytest_configure() -> None:
    """Take it away before tests are collected."""
    take_away()


if __name__ == "__main__":
    take_away()
    from ckptool.__main__ import run

    run()

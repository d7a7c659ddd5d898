"""Limits of this process: its CPUs, the files that it may have open, and the memory it holds."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

MANY_FILES = 1 << 16  # open at a time; a save of more ranks has several files each


def allow_many_files() -> None:
    """Raise the soft limit of open files, often 1,024, to what the system allows this process.

    Only the command line does so, in a process of its own. A program that imports ckptool keeps its
    limit, and gets an error with advice where a checkpoint has more files.
    """
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limits
        import resource  # noqa: PLC0415

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = resource.RLIM_INFINITY
        if soft != unlimited and (soft < hard or hard == unlimited):
            wanted = MANY_FILES if hard == unlimited else min(hard, MANY_FILES)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def usable_cpus() -> int:
    """Return the number of CPUs of this process, or of the machine where the system has no such."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def resident_bytes() -> int:
    """Return the memory that the process holds now.

    That is its peak where the system has no /proc, and 0 on Windows, which tells neither so simply.
    """
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - asked for each megabyte
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_bytes()


def _peak_bytes() -> int:
    try:
        import resource  # noqa: PLC0415 - POSIX has it
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10  # bytes there, KiB elsewhere

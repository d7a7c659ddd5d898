"""Limits of this process: the CPUs that it may use, and the files that it may have open."""

from __future__ import annotations

import os
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

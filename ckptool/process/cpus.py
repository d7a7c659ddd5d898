"""The number of CPUs that this process may use."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """Return the number of CPUs of this process, or of the machine where the system has no such."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none
    return len(affinity(0)) if affinity else os.cpu_count() or 1

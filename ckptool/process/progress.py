"""Progress of work that takes long: the type of the function that reports it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int], None]  # called with the bytes done since the last call


def no_progress(_nbytes: int) -> None:
    """Ignore progress."""

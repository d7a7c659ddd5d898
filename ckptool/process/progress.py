"""Progress of work that takes long: the function that reports it, and its share of the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

Progress = Callable[[int], None]  # called with the bytes done since the last call


def no_progress(_nbytes: int) -> None:
    """Ignore progress."""


class Meter(ABC):
    """A progress that shows which part of the work is done."""

    @abstractmethod
    def __call__(self, nbytes: int) -> None:
        """Count bytes that were done since the last call."""

    @abstractmethod
    def expect(self, nbytes: int) -> None:
        """Count bytes that are still to be done."""


def announce(progress: Progress, nbytes: int) -> None:
    """Announce work that follows, to a progress that shows how much is left."""
    if isinstance(progress, Meter):
        progress.expect(nbytes)

"""Progress of work that takes long: the function that reports it, and its share of the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
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

    @abstractmethod
    def begin(self, at: int, count: int) -> None:
        """Begin part ``at`` of ``count``: the bytes of the later ones are not announced yet."""


def announce(progress: Progress, nbytes: int) -> None:
    """Announce work that follows, to a progress that shows how much is left."""
    if isinstance(progress, Meter):
        progress.expect(nbytes)


def parts(progress: Progress, items: Sequence[Item]) -> Iterator[Item]:
    """Yield items that are much alike, such as the checkpoints of a run, each as a part of all."""
    for at, item in enumerate(items, 1):
        if isinstance(progress, Meter):
            progress.begin(at, len(items))
        yield item

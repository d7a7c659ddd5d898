"""A thread that does work beside the one that has it to do: it begins with the last item."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Thread
from typing import Generic, TypeVar

from ckptool.process.signals import held

Item = TypeVar("Item")


class Beside(Generic[Item]):
    """Items of work; a thread does the last one that is left, until none is."""

    def __init__(self, items: Iterable[Item], work: Callable[[Item], object]) -> None:
        self._items = deque(items)
        self._work = work
        self._is_started = self._is_done = False
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start the thread; where none is to be had, all items are left to the caller."""
        with held(), suppress(RuntimeError):
            Thread(target=self._run, daemon=True).start()
            self._is_started = True

    def _run(self) -> None:
        try:
            while self._items:
                self.do_last()
        except BaseException as error:  # noqa: BLE001 - finish raises it
            self._error = error
            self.drop()
        finally:
            self._is_done = True

    def do_last(self) -> None:
        """Do the last item, unless the caller has just taken it."""
        try:
            item = self._items.pop()
        except IndexError:
            return
        self._work(item)

    def first(self) -> Iterator[Item]:
        """Yield the first item, for the caller to do, until none is left."""
        while self._items:
            try:
                item = self._items.popleft()
            except IndexError:
                return
            yield item

    def drop(self) -> None:
        """Leave undone what nobody has begun."""
        self._items.clear()

    def stop(self) -> None:
        """Drop the rest, and wait for the thread."""
        self.drop()
        self._wait()

    def finish(self) -> None:
        """Wait for the thread, and raise the error that has ended it."""
        self._wait()
        if self._error:
            raise self._error

    def _wait(self) -> None:
        """Wait without a lock: a signal that comes meanwhile waits here, too."""
        while self._is_started and not self._is_done:
            time.sleep(0.001)

"""Signals that end a run: it ends at once, and takes away what it has not finished.

The command line ends the process in the signal's handler. No exception then travels through code
that was not written for it (imports, finalizers, other people's libraries), no thread is waited
for, and there is no traceback. What must not be left behind is named by ``undone_at_end``; while
what stands on the disk and what is known of it differ, ``held`` puts the end off.

A process that has not asked for this with ``end_cleanly`` gets Python's own exceptions.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # the exit code


class _Run:
    """What this process would have to undo."""

    undo: tuple[Callable[[], None], ...] = ()
    held = 0  # blocks that must not be left half done
    came = False  # a signal, meanwhile


def end_cleanly() -> None:
    """From now on signals end this process so, except those that ``nohup`` and the like ignore."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _signalled)


@contextmanager
def undone_at_end(undo: Callable[[], None]) -> Iterator[None]:
    """Run ``undo`` at the end of the block, also at the end of the process; maybe twice."""
    _Run.undo = (*_Run.undo, undo)
    try:
        yield
    finally:
        undo()
        _Run.undo = tuple(other for other in _Run.undo if other is not undo)


@contextmanager
def held() -> Iterator[None]:
    """A block of few steps that signals do not divide."""
    _Run.held += 1
    try:
        yield
    finally:
        _Run.held -= 1
        if _Run.came and not _Run.held:
            _end()


def _signalled(_number: int, _frame: object) -> None:
    _Run.came = True
    if not _Run.held:
        _end()


def _end() -> None:
    for undo in reversed(_Run.undo):
        with suppress(Exception):
            undo()
    os._exit(INTERRUPTED)

"""Signals that end a run: it ends at once, and removes its unfinished files.

The command line ends the process in the signal's handler. So no exception travels through code that
was not written for it (imports, finalizers, other people's libraries), no thread is waited for, and
there is no traceback. ``undone_at_end`` registers the cleanup. ``held`` delays the end while the
state of the disk and the state that the process knows differ. ``end_now`` ends the process likewise
without a signal.

A process that has not asked for this with ``end_cleanly`` gets Python's own exceptions.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
INTERRUPTED = 130  # the exit code


class _Run:
    """The state of this process: its cleanup functions, and a signal that is delayed."""

    undo: tuple[Callable[[], None], ...] = ()
    tell: Callable[[], None] | None = None  # say that the user ended it, by Ctrl-C
    process = 0  # the one that says so: forks of it get the signal, too
    last_words: Callable[[], None] | None = None  # said at the end
    code = INTERRUPTED
    held = 0  # blocks that must not be left half done
    came = False  # whether a signal came meanwhile


def end_cleanly(tell: Callable[[], None] | None = None) -> None:
    """Let signals end this process cleanly, except those that ``nohup`` and the like ignore.

    ``tell`` is called at the end if the signal is SIGINT, after the cleanup.
    """
    _Run.tell, _Run.process = tell, os.getpid()
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
    """Delay signals until the end of a block of few steps."""
    _Run.held += 1
    try:
        yield
    finally:
        _Run.held -= 1
        if _Run.came and not _Run.held:
            _end()


def end_now(code: int, last_words: Callable[[], None]) -> None:
    """End this process as a signal does, with an exit code, and with what ``last_words`` says."""
    _Run.came, _Run.code, _Run.last_words = True, code, last_words
    if not _Run.held:
        _end()


def _signalled(number: int, _frame: object) -> None:
    _Run.came = True
    if number == signal.SIGINT:
        _Run.last_words = _Run.tell
    if not _Run.held:
        _end()


def _end() -> None:
    for undo in reversed(_Run.undo):
        with suppress(Exception):
            undo()
    if _Run.last_words and os.getpid() == _Run.process:
        with suppress(Exception):
            _Run.last_words()
    os._exit(_Run.code)

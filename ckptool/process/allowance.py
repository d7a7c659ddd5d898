"""The CPU time and the memory that a command may take for the files that it opens.

Readers count the work of each kind that is known to grow (``formats/pickles/budget.py`` and its
like), and say what is wrong with the file. This is the bound for all other work, which nobody
thought of: what a whole process takes, whatever the command does. Genuine files stay far below it.

Every file that is opened adds to the allowance, the more the larger it is, and so does a directory
of many names. The command line looks at it now and then by a timer of the CPU. If it is used up,
the process ends as by a signal: it removes its unfinished files, and says why. A program that
imports ckptool has no such timer. Forked processes that share the work (``forks.py``) share what is
left, too: each has a timer of its own, and tells the error as it tells a result.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from time import process_time

from ckptool.errors import UnsupportedError
from ckptool.process.limits import resident_bytes
from ckptool.process.signals import end_now

SHARE = 64_000_000  # bytes: a file up to this size allows as much as
SECONDS = 19.0  # of the CPU (with the last step and the end, the command takes 20), and
MEMORY = 7 << 28  # bytes that the process holds (between two looks it may grow to 2 GiB);
LARGER = 10  # a larger file allows so many times as much for each such part of it
NAMES = 10_000  # of a directory, which allow as much as a small file
FIRST, EVERY = 1.0, 0.25  # seconds of the CPU until the first look, and between two looks
REFUSED = 2  # the exit code
HINT = "ask for a part of it, PATH#ADDRESS; if you trust the file, CKPTOOL_LIMITS=off lifts limits"


class Allowance:
    """Sum of what the files that were opened so far allow, and the check of what was taken."""

    def __init__(self) -> None:
        self.shares = 0
        self.last: str | None = None  # the file that was opened last
        self._known: set[Hashable] = set()
        self._processes = 1  # that share the work now,
        self._before = self._begun = 0.0  # seconds of all before, and of this one alone by then

    @property
    def taken(self) -> float:
        """The CPU seconds of this process, and of those that share its work: each takes as long."""
        return self._before + (_own_seconds() - self._begun) * self._processes

    @contextmanager
    def divided(self, processes: int) -> Iterator[None]:
        """Count for so many processes; at the end of the block they have ended, and are known."""
        self._before, self._begun, self._processes = self.taken, _own_seconds(), processes
        try:
            yield
        finally:
            self._before, self._begun, self._processes = 0.0, 0.0, 1

    def keep_share(self) -> None:
        """Let a forked process raise the error once its share is used up.

        It has no timer, since timers are not inherited, and its time begins anew.
        """
        self._begun = 0.0
        if _is_kept():
            signal.signal(signal.SIGPROF, _raise_if_used_up)
            signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)

    def grant(self, name: str, identity: Hashable, nbytes: int) -> None:
        """Allow the work for a file; one that is opened again adds nothing."""
        self.last = name
        parts = -(-nbytes // SHARE)
        self._add(identity, LARGER * parts if parts > 1 else 1)

    def grant_names(self, folder: Hashable, count: int) -> None:
        """Allow the work for the names in a directory; one that is listed again adds nothing."""
        self._add(folder, count // NAMES)

    def _add(self, identity: Hashable, shares: int) -> None:
        if identity not in self._known:
            self._known.add(identity)
            self.shares += shares

    def check(self, seconds: float, memory: int) -> None:
        """Refuse to go on if so much CPU time or memory is more than is allowed.

        Raises:
            UnsupportedError: it is.
        """
        shares = max(1, self.shares)
        taken = None
        if seconds > SECONDS * shares:
            taken = f"{seconds:,.1f} seconds of CPU time"
        elif memory > MEMORY * shares:
            taken = f"{memory / (1 << 30):,.1f} GiB of memory"
        if taken:
            message = f"the command took {taken}, more than any file of this size needs"
            raise UnsupportedError(message, path=self.last, hint=HINT)


ALLOWANCE = Allowance()  # of this process


def _own_seconds() -> float:
    """Return the CPU time of this process, and of its children that have ended."""
    return process_time() + sum(os.times()[2:4])


def _is_kept() -> bool:
    return hasattr(signal, "setitimer") and callable(signal.getsignal(signal.SIGPROF))


def _raise_if_used_up(_number: int, _frame: object) -> None:
    # torch holds gigabytes of its own, where a comparison uses a GPU.
    ALLOWANCE.check(ALLOWANCE.taken, 0 if "torch" in sys.modules else resident_bytes())


def keep_within(tell: Callable[[UnsupportedError], None]) -> None:
    """Let this process end once its allowance is used up, with what ``tell`` says of the error.

    Windows has no timer of the CPU: nothing is bound there.
    """
    if not hasattr(signal, "setitimer"):
        return

    def look(number: int, frame: object) -> None:
        try:
            _raise_if_used_up(number, frame)
        except UnsupportedError as error:
            stop()
            end_now(REFUSED, partial(tell, error))

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, FIRST, EVERY)


def stop() -> None:
    """Look no more: the answer is being written."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, 0)

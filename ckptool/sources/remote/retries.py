"""Repetition of requests that may succeed later: with growing pauses, and not for ever.

A transfer that broke off goes on where it stopped. A server that asks for a pause gets it, unless
the pause is so long that a person would rather know.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from ckptool.records import NamedTuple
from ckptool.sources.remote.base import RemoteObject, TransferError

Answer = TypeVar("Answer")

PROGRESS = 1 << 16  # bytes of a transfer that broke off, from which on it is one that goes on


class Patience(NamedTuple):
    """Limits of the time that servers are given."""

    connect: float = 10.0  # seconds to connect
    silence: float = 30.0  # seconds without a byte
    rate: float = 1000.0  # bytes a second that a transfer must have after ``silence``
    attempts: int = 5  # of one request in a row without progress
    interruptions: int = 50  # of one transfer that makes progress
    first_pause: float = 0.5  # seconds, doubled each time
    longest_pause: float = 60.0  # seconds; a server that asks for more is not waited for
    sleep: Callable[[float], None] = time.sleep


PATIENCE = Patience()


def repeated(ask: Callable[[], Answer], patience: Patience) -> Answer:
    """Return the answer to a request, asked again where it failed for a while.

    Raises:
        TransferError: it does not succeed.
    """
    for failures in range(1, patience.attempts):
        try:
            return ask()
        except TransferError as error:
            pause(error, failures, patience)
    return ask()


def transfer(remote: RemoteObject, buffer: memoryview, offset: int, patience: Patience) -> None:
    """Fill ``buffer`` from ``offset``, by as many requests as it takes.

    Raises:
        TransferError: it does not succeed.
    """
    failures = interruptions = 0
    while buffer:
        try:
            count = remote.get(buffer, offset)
        except TransferError as error:
            count = error.received
            failures = 1 if count >= PROGRESS else failures + 1
            interruptions += 1
            if failures >= patience.attempts or interruptions >= patience.interruptions:
                raise
            pause(error, failures, patience)
        buffer, offset = buffer[count:], offset + count


def pause(error: TransferError, failures: int, patience: Patience) -> None:
    """Wait before a request is repeated.

    Raises:
        TransferError: it would fail again, or the server asks for too long a pause.
    """
    if not error.is_transient:
        raise error
    if error.wait is not None and error.wait > patience.longest_pause:
        raise TransferError(
            f"{error.message}: the server asks to wait {error.wait:.0f} seconds",
            "run the command again then",
        ) from error
    backoff = patience.first_pause * 2 ** (failures - 1) * (0.5 + random.random())  # noqa: S311
    patience.sleep(min(max(backoff, error.wait or 0), patience.longest_pause))

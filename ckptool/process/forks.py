"""Forked processes that share work in which threads would wait for each other.

A thread needs the interpreter's lock to go from one call of numpy to the next. Where calls are
short, more than a few threads mostly hand the lock around. Forked processes have a lock each, see
what this process has opened and read, and answer as ranks do. Rules, each with its reason:

* A fork copies one thread alone, and locks that others hold stay locked in it for ever. So a
  process of several threads makes no forks (:func:`can_fork`).
* A child computes, answers and ends without cleanup: what this process has registered, opened or
  buffered belongs to this process.
* A child keeps within its share of the CPU time that the command may take: the time of this process
  stands still while it waits for the others.
* A signal ends a child at once. A child also ends before its next item once this process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

from ckptool.errors import CkptError
from ckptool.process.allowance import ALLOWANCE
from ckptool.process.ranks import Ranks
from ckptool.process.signals import ENDING, held

Item = TypeVar("Item")
TASKS = "/proc/self/task"  # a directory with an entry for each thread, also those of libraries


def can_fork() -> bool:
    """Return whether this process can be forked safely: on Linux, with one thread."""
    try:
        return sys.platform == "linux" and len(os.listdir(TASKS)) == 1  # noqa: PTH208 - names alone
    except OSError:
        return False


def work_in_forks(
    count: int,
    items: Sequence[Item],
    carry_out: Callable[[Item], Any],
    done: Callable[[Item], None] = lambda _item: None,
) -> list[Any]:
    """Return the result of each item, in their order, computed by ``count`` processes.

    Where so many cannot be had, this process computes all of them.

    Args:
        count: the number of processes with this one.
        items: each takes about as long as the others.
        carry_out: gives the result of an item. JSON may change it, as a tuple to a list.
        done: called here after each item that this process has computed.

    Raises:
        CkptError: one of the processes met it.
    """

    def own_item(item: Item) -> Any:
        result = carry_out(item)
        done(item)
        return result

    with ALLOWANCE.divided(count):
        found = _shared(count, items, carry_out, own_item)
    return [own_item(item) for item in items] if found is None else found


def _shared(
    count: int,
    items: Sequence[Item],
    carry_out: Callable[[Item], Any],
    own_item: Callable[[Item], Any],
) -> list[Any] | None:
    """Return the results of all processes; None where so many cannot be had."""
    parent, children = os.getpid(), dict[int, int]()  # the process, and where it answers
    # Where ended children are ignored, as by some supervisors, nobody could wait for them.
    reaped = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with held():  # a signal in between would run the cleanup of this process in a child
            for rank in range(1, count):
                answer, given = os.pipe()
                try:
                    child = os.fork()
                except OSError:  # no further process can be had
                    os.close(answer)
                    os.close(given)
                    break
                if not child:
                    _answer_and_end(
                        Ranks(rank, count, partial(_send, given)), parent, items, carry_out
                    )
                os.close(given)
                children[child] = answer
        if len(children) < count - 1:
            return None
        return Ranks(0, count, lambda text: [text, *map(_heard, children.values())]).work(
            items, lambda share: [own_item(item) for item in share]
        )
    finally:
        for child, answer in children.items():
            os.close(answer)
            os.kill(child, signal.SIGKILL)  # one that has answered has ended, but is not forgotten
            os.waitpid(child, 0)
        signal.signal(signal.SIGCHLD, reaped)


def _answer_and_end(
    ranks: Ranks, parent: int, items: Sequence[Item], carry_out: Callable[[Item], Any]
) -> NoReturn:
    """Carry out the share of a child."""
    try:
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)

        ALLOWANCE.keep_share()

        def own(share: Sequence[Item]) -> list[Any]:
            results = []
            for item in share:
                if os.getppid() != parent:
                    os._exit(1)
                results.append(carry_out(item))
            return results

        ranks.work(items, own)
    finally:
        os._exit(1)


def _send(given: int, text: str) -> NoReturn:
    """Write the answer of a child to its pipe; end the child."""
    with os.fdopen(given, "wb") as pipe:
        pipe.write(text.encode())
    os._exit(0)


def _heard(answer: int) -> str:
    """Return the answer of a child that has ended, or the error that it has none."""
    with os.fdopen(answer, "rb", closefd=False) as pipe:
        text = pipe.read().decode()
    if text:
        return text
    error = CkptError("a process that shared the work has ended too soon")
    return json.dumps({"error": error.document})

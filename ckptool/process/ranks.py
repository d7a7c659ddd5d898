"""Ranks: several processes, as ``torchrun`` starts them, that produce one report.

Every rank opens the files, which is cheap, and takes its share of the data that is read in full.
Results travel as JSON in tensors, so that nothing is unpickled. Then every rank knows all results,
in the order of one process, and comes to the same verdict. An error of one rank is an error of all,
so no rank waits for one that has given up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import heapify, heapreplace
from typing import Any, TypeVar

from ckptool.errors import BY_CODE, CkptError, UnsupportedError
from ckptool.records import NamedTuple

Item = TypeVar("Item")


class Ranks(NamedTuple):
    """The processes that share work, of which this is one; by default there is only one."""

    rank: int = 0  # of this process
    world: int = 1  # number of processes
    exchange: Callable[[str], list[str]] = lambda text: [text]  # own text -> that of every rank

    def work(
        self,
        items: Sequence[Item],
        carry_out: Callable[[Sequence[Item]], list[Any]],
        size: Callable[[Item], int] = lambda _item: 1,
    ) -> list[Any]:
        """Return a result for each item, in their order, whichever process has computed it.

        Args:
            items: the same on every rank.
            carry_out: gives a result for each of its items. JSON may change a result, as a tuple
                to a list; callers must accept that.
            size: the amount of work of an item; every rank gets about the same amount.

        Raises:
            CkptError: one of the ranks met it.
        """
        if self.world == 1:
            return carry_out(items)
        owners = _owners([size(item) for item in items], self.world)
        own = [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]
        answers = [json.loads(text) for text in self.exchange(_answer(carry_out, own))]
        for error in filter(None, (answer.get("error") for answer in answers)):
            raise BY_CODE[error.pop("code")](**error)
        parts = [iter(answer["results"]) for answer in answers]
        return [next(parts[owner]) for owner in owners]


def _owners(sizes: Sequence[int], count: int) -> list[int]:
    """Assign each item to a rank: the largest first, each to the rank with the least so far."""
    loads = [(0, rank) for rank in range(count)]
    heapify(loads)
    owners = [0] * len(sizes)
    for nth in sorted(range(len(sizes)), key=lambda nth: -sizes[nth]):
        load, owners[nth] = loads[0]
        heapreplace(loads, (load + sizes[nth], owners[nth]))
    return owners


def _answer(carry_out: Callable[[Sequence[Item]], list[Any]], own: Sequence[Item]) -> str:
    """Return the answer of this rank to all others: its results, or its error."""
    try:
        return json.dumps({"results": carry_out(own)})
    except CkptError as error:
        return json.dumps({"error": _told(error)})
    except OSError as error:
        unread = CkptError(f"the file cannot be read: {error.strerror or error}")
        return json.dumps({"error": _told(unread)})
    except MemoryError:
        return json.dumps({"error": _told(CkptError("not enough memory"))})
    except Exception as error:  # noqa: BLE001 - the others wait for an answer
        bug = CkptError(f"a bug in ckptool: {type(error).__name__}: {error}")
        return json.dumps({"error": _told(bug)})


def _told(error: CkptError) -> dict[str, str | None]:
    return error.document


@contextmanager
def joined_ranks(rank: int, count: int) -> Iterator[Ranks]:
    """Join ``count`` processes that meet where the environment of torchrun says.

    They use gloo, since they exchange data on the CPU.

    Raises:
        UnsupportedError: there is no torch with torch.distributed.
    """
    try:
        import torch.distributed as group
    except ImportError as error:
        raise UnsupportedError(
            "torchrun needs torch, which is not installed", hint="pip install 'ckptool[torch]'"
        ) from error
    group.init_process_group("gloo")
    try:
        yield Ranks(rank, count, _all_texts)
        # torchrun kills the other processes once one has ended with a code that is not 0: no
        # process may end before the one that prints the answer has printed it.
        with suppress(RuntimeError):  # the printing process has failed, and reports it itself
            group.barrier()
    finally:
        group.destroy_process_group()


def _all_texts(text: str) -> list[str]:
    """Return the text of every rank."""
    import torch
    import torch.distributed as group

    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(group.get_world_size())]
    group.all_gather(sizes, torch.tensor([len(data)]))
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in sizes]
    group.all_gather(parts, padded)
    return [
        part[: int(size)].numpy().tobytes().decode()
        for part, size in zip(parts, sizes, strict=True)
    ]

"""One comparison by several processes, as ``torchrun`` starts them.

Every rank opens both operands, which is cheap, and takes every n-th task; the results travel as
JSON in tensors, so that nothing is unpickled, and then every rank has them all. The runs and the
order in which they are merged are those of one process, and so is the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ckptool.comparison.engine import Ranks, Results, Run, Task
from ckptool.comparison.kernels import Partial, Sums
from ckptool.errors import UnsupportedError


@contextmanager
def joined_ranks(rank: int, count: int) -> Iterator[Ranks]:
    """How ``count`` processes share the tasks; this one is ``rank``, counted from 0.

    They meet where the environment of torchrun says, by gloo: the numbers are on the processor.

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
        yield Ranks(lambda tasks: _share(tasks, rank, count), _exchanged)
    finally:
        group.destroy_process_group()


def _share(tasks: list[Task], rank: int, count: int) -> list[Task]:
    """Tasks have about as many bytes each, so every n-th is as good as a cut by bytes."""
    return tasks[rank::count]


def _exchanged(own: Results) -> Results:
    """The results of all ranks, in the order of the runs."""
    texts = _all_texts(json.dumps([(run, partial) for run, partial in own]))
    found = [_result(row) for text in texts for row in json.loads(text)]
    return sorted(found, key=lambda result: result[0])


def _result(row: list[Any]) -> tuple[Run, Partial | None]:
    run, partial = row
    if partial is None:
        return Run(*run), None
    *numbers, sums = partial
    return Run(*run), Partial(*numbers)._replace(sums=Sums(*sums))


def _all_texts(text: str) -> list[str]:
    """The text of every rank."""
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

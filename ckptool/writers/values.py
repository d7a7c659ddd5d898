"""Values that are no run of bytes of the source are read back.

What is copied as it stands is as good as the copy. What was cast, swapped or gathered on the way is
ours: its checksum is taken on the way out and held against what can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from ckptool.casting import side_by_side
from ckptool.crc import crc32
from ckptool.formats.base import SourceFile
from ckptool.numerics import BLOCK
from ckptool.writers.base import expect


class Run(NamedTuple):
    """A run of bytes of the output."""

    offset: int
    nbytes: int
    crc: int


def check_runs(path: Path, runs: Iterable[Run]) -> None:
    """Read back what was written.

    Raises:
        DamagedError: a byte differs.
    """
    with SourceFile(path) as written:

        def check(run: Run) -> None:
            found = checksum(partial(_read_from, written, run.offset), run.nbytes)
            expect(found == run.crc, f"{run.nbytes} bytes at {run.offset}", path)

        for _ in side_by_side(check, runs, attrgetter("nbytes")):
            pass


def _read_from(file: SourceFile, start: int, at: int, nbytes: int) -> bytes:
    return file.read(start + at, nbytes)


def checksum(read: Callable[[int, int], bytes], nbytes: int) -> int:
    """The CRC-32 of the first ``nbytes`` bytes that ``read(offset, size)`` gives, in blocks."""
    crc = 0
    for at in range(0, nbytes, BLOCK):
        crc = crc32(read(at, min(BLOCK, nbytes - at)), crc)
    return crc

"""Statistics of written values, and checks that they read back.

Values that are copied unchanged are as good as the copy. Values that were cast, swapped or gathered
are made here: their checksum is computed when they are written, and compared with what can be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.sources.local import LocalFile
from ckptool.tensors.casting import Losses, side_by_side
from ckptool.tensors.crc import Seen, checksum
from ckptool.writers.files.whole_file import expect


@dataclass(slots=True)
class Account:
    """Statistics of the values that were read and written."""

    losses: dict[str, Losses] = field(default_factory=dict)  # by tensor
    seen: dict[ByteSpan, Seen] = field(default_factory=dict)  # of the runs that were read
    made: dict[str, int] = field(default_factory=dict)  # CRC-32 of targets that a promotion made


class WrittenRun(NamedTuple):
    """A run of bytes of the output."""

    offset: int
    nbytes: int
    crc: int


def check_runs(path: Path, runs: Iterable[WrittenRun]) -> None:
    """Read the runs back and compare their checksums.

    Raises:
        DamagedError: a byte differs.
    """
    with LocalFile(path) as written:

        def check(run: WrittenRun) -> None:
            found = checksum(written.read, run.nbytes, run.offset)
            expect(found == run.crc, f"{run.nbytes} bytes at {run.offset}", path)

        for _ in side_by_side(check, runs, attrgetter("nbytes")):
            pass

"""Runs of bytes that are copied into an output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.writers.files.copying import STEP


class Run(NamedTuple):
    """Bytes of a source, and their offset in the output."""

    span: ByteSpan
    at: int

    def cut(self) -> Iterator[Run]:
        """Yield its steps."""
        source, start, nbytes = self.span
        for done in range(0, nbytes, STEP):
            step = ByteSpan(source, start + done, min(STEP, nbytes - done))
            yield Run(step, self.at + done)


def between(span: ByteSpan, later: Sequence[ByteSpan]) -> Iterator[ByteSpan]:
    """Yield the parts of a span outside the others, which lie in it, in order and disjoint."""
    at, end = span.offset, span.offset + span.nbytes
    for other in (*later, ByteSpan(span.source, end, 0)):
        if other.offset > at:
            yield ByteSpan(span.source, at, other.offset - at)
        at = other.offset + other.nbytes

"""Packs: many small tensors that are copied as they are, by a few reads and writes.

Alone, each takes ten times as long as the copying of its bytes. The tensors of a pack follow each
other in the output; in the source they may lie in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.tensors.crc import Seen, crc32
from ckptool.tensors.finite import FiniteTest
from ckptool.tensors.windows import GAP, SMALL, windows

MANY = 1 << 13  # tensors of a pack, which may lie GAP apart in the source
ENOUGH = 1 << 20  # bytes of a pack


class Pack(NamedTuple):
    """The runs of bytes of small tensors of one dtype, and their offsets in the output."""

    moves: list[int]  # their indexes
    spans: list[ByteSpan]
    offsets: list[int]
    test: FiniteTest | None

    @property
    def nbytes(self) -> int:
        """The bytes of the output from the first tensor to the last."""
        return self.offsets[-1] + self.spans[-1].nbytes - self.offsets[0]

    def admits(self, offset: int, test: FiniteTest | None) -> bool:
        """Return whether a tensor with this offset can be the next in the pack."""
        nbytes = self.nbytes
        apart = offset - self.offsets[0] - nbytes
        is_full = len(self.moves) >= MANY or nbytes >= ENOUGH
        return 0 <= apart <= GAP and test is self.test and not is_full


class Unpacked(NamedTuple):
    """The findings on each tensor of a pack, and the bytes to write, with their offsets."""

    seen: list[Seen]
    writes: Sequence[tuple[int, bytes | memoryview]]


def is_small(span: ByteSpan) -> bool:
    """Return whether a run of bytes is read faster with others than alone."""
    source = span.source
    return span.nbytes <= SMALL and source.is_near and not source.is_computed


def unpack(reader: TensorReader, pack: Pack) -> Unpacked:
    """Read the tensors of a pack."""
    pieces = _pieces(reader, pack.spans)
    joined = memoryview(b"".join(pieces))
    if pack.test is None:
        are_finite = [False] * len(pieces)
    else:
        ends = accumulate(map(len, pieces), initial=0)
        found = pack.test.of_each(joined, pairwise(ends))
        are_finite = [values.is_finite for values in found]
    seen = [
        Seen(len(piece), crc32(piece), is_finite)
        for piece, is_finite in zip(pieces, are_finite, strict=True)
    ]
    if pack.nbytes == len(joined):  # nothing lies between them
        return Unpacked(seen, [(pack.offsets[0], joined)])
    return Unpacked(seen, [*zip(pack.offsets, pieces, strict=True)])


def _pieces(reader: TensorReader, spans: Sequence[ByteSpan]) -> list[memoryview]:
    """Return the bytes of each span."""
    keys = [(id(source), offset) for source, offset, _ in spans]
    order = sorted(range(len(spans)), key=keys.__getitem__)
    pieces = [memoryview(b"")] * len(spans)
    numbers = iter(order)
    for window in windows(spans[nth] for nth in order):
        data = memoryview(reader.read(window.span))
        for (start, stop), nth in zip(window.places, numbers, strict=False):
            pieces[nth] = data[start:stop]
    return pieces

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
from ckptool.tensors.mean import Mean, computed
from ckptool.tensors.windows import GAP, SMALL, read_each

MANY = 1 << 13  # tensors of a pack, which may lie GAP apart in the source
ENOUGH = 1 << 20  # bytes of a pack


Recipe = tuple[object, ...] | None


class Pack(NamedTuple):
    """The runs of bytes of small tensors of one dtype, and their offsets in the output."""

    moves: list[int]  # their indexes
    spans: list[ByteSpan]
    offsets: list[int]
    test: FiniteTest | None
    recipe: Recipe = None  # of means

    @property
    def nbytes(self) -> int:
        """The bytes of the output from the first tensor to the last."""
        return self.offsets[-1] + self.spans[-1].nbytes - self.offsets[0]

    def admits(self, offset: int, test: FiniteTest | None, recipe: Recipe) -> bool:
        """Return whether a tensor with this offset can be the next in the pack."""
        nbytes = self.nbytes
        apart = offset - self.offsets[0] - nbytes
        is_full = len(self.moves) >= MANY or nbytes >= ENOUGH
        return 0 <= apart <= GAP and test is self.test and recipe == self.recipe and not is_full


class Unpacked(NamedTuple):
    """The findings on each tensor of a pack, and the bytes to write, with their offsets."""

    seen: list[Seen]
    writes: Sequence[tuple[int, bytes | memoryview]]


def is_small(span: ByteSpan, recipe: Recipe) -> bool:
    """Return whether a run of bytes is read, or a mean computed, faster with others than alone."""
    source, _, nbytes = span
    is_whole_mean = recipe is not None and nbytes == source.size
    return nbytes <= SMALL and source.is_near and (is_whole_mean or not source.is_computed)


def recipe_of(span: ByteSpan) -> Recipe:
    """Return everything that means of a pack have in common; None: it is no mean."""
    return span.source.recipe if isinstance(span.source, Mean) else None


def unpack(reader: TensorReader, pack: Pack) -> Unpacked:
    """Read the tensors of a pack."""
    means = [span.source for span in pack.spans if isinstance(span.source, Mean)]
    read: Sequence[bytes | memoryview] = (
        computed(means) if pack.recipe else read_each(pack.spans, reader.read)
    )
    joined = memoryview(b"".join(read))
    if pack.test is None:
        are_finite = [False] * len(read)
    else:
        ends = accumulate(map(len, read), initial=0)
        found = pack.test.of_each(joined, pairwise(ends))
        are_finite = [values.is_finite for values in found]
    seen = [
        Seen(len(piece), crc32(piece), is_finite)
        for piece, is_finite in zip(read, are_finite, strict=True)
    ]
    if pack.nbytes == len(joined):  # nothing lies between them
        return Unpacked(seen, [(pack.offsets[0], joined)])
    return Unpacked(seen, [*zip(pack.offsets, read, strict=True)])

"""Bound of the bytes that tensors come to when all of them are read.

A tensor is a view, so a small file can hold a hundred thousand tensors that each view all of it, or
one that repeats a single value a billion times. The values of an honest file come to a few times
its size at most, where several names share them. So the volume of all tensors that a command is
about to read is held against the bytes that they view. Each tensor takes time of its own, however
few values it has, so their number is held against the bytes too.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from ckptool.errors import RepetitionError
from ckptool.formats.base import are_too_many
from ckptool.sources.base import Source
from ckptool.tensors.blocks import refuse_unfolding
from ckptool.tree.nodes import TensorRef, stored_bytes

MAX_VOLUME = 1 << 29  # bytes that are always read,
REPEATS = 8  # or so many times the bytes that the tensors view
PACKED_REPEATS = 2  # times those that had to be unpacked


def volume(ref: TensorRef) -> int:
    """Return the bytes of a tensor's values, or of the span that it views if that is longer."""
    width = ref.dtype.itemsize
    return sum(max(prod(chunk.shape) * width, chunk.span.nbytes) for chunk in ref.chunks)


def refuse_repetition(tensors: Iterable[TensorRef]) -> None:
    """Refuse tensors that come to far more bytes than the file holds, before they are read.

    Raises:
        RepetitionError: to read all of them would take too long.
    """
    refs = list(tensors)
    if are_too_many(len(refs), stored_bytes(refs)):
        raise RepetitionError(
            f"{len(refs):,} tensors of next to no values: to read each of them would take too long"
        )
    total = sum(map(volume, refs))
    if total <= MAX_VOLUME:
        return
    for ref in refs:
        for chunk in ref.chunks:
            refuse_unfolding(chunk, ref.dtype.itemsize)
    packed = [ref for ref in refs if any(chunk.span.source.keeps for chunk in ref.chunks)]
    plain = [ref for ref in refs if not any(chunk.span.source.keeps for chunk in ref.chunks)]
    allowed = REPEATS * stored_bytes(plain) + PACKED_REPEATS * stored_bytes(packed)
    refuse_volume(total, allowed, next(ref.chunks[0].span.source for ref in refs if ref.chunks))


def refuse_volume(total: int, allowed: int, source: Source) -> None:
    """Refuse to read ``total`` bytes, if they are more than is always read and than ``allowed``.

    Raises:
        RepetitionError: they are.
    """
    if total > max(MAX_VOLUME, allowed):
        raise RepetitionError(
            f"its tensors view the same bytes again and again: to read all of them would be "
            f"{total >> 20:,} MiB",
            path=source.path or source.name,
        )

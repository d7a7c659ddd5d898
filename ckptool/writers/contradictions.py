"""Whether patches whose targets share bytes would put the same ones there.

Tied weights, views that overlap, a flat buffer beside its parts: the file has one place for them.
All are followed together, a window of the file at a time. What each would put there is one long
number with a mask, since Python combines such numbers fast and without numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckptool.formats.base import TensorReader
from ckptool.tree import ByteSpan
from ckptool.writers.patched_copy import Patch, laid, pieces, values_for

WINDOW = 1 << 20  # bytes


def contradiction(patches: Sequence[Patch], reader: TensorReader) -> tuple[Patch, Patch] | None:
    """Two patches that would put different bytes in one place; None when all agree."""
    spans = [patch.place for patch in patches]
    start = min(span.offset for span in spans)
    end = max(span.offset + span.nbytes for span in spans)
    for at in range(start, end, WINDOW):
        window = range(at, at + WINDOW)
        there = [patch for patch, span in zip(patches, spans, strict=True) if _meets(span, window)]
        whole = _Imprint(0, 0)
        for patch in there:
            imprint = _imprint(patch, reader, window)
            if whole.differs(imprint):
                return next(p for p in there if imprint.differs(_imprint(p, reader, window))), patch
            whole = whole.joined(imprint)
    return None


class _Imprint(NamedTuple):
    """Bytes that a patch puts into a window, as one number; the mask has ones where it does."""

    value: int
    mask: int

    def differs(self, other: _Imprint) -> bool:
        return bool((self.value ^ other.value) & self.mask & other.mask)

    def joined(self, other: _Imprint) -> _Imprint:
        return _Imprint(self.value | other.value, self.mask | other.mask)


def _imprint(patch: Patch, reader: TensorReader, window: range) -> _Imprint:
    """What shows on zeros and on ones alike is the patch's."""
    whole = _Imprint(0, 0)
    for ours, theirs in pieces(patch, WINDOW):
        if _meets(ours.span, window):
            values, _ = values_for(patch, reader, theirs)
            on_zeros, on_ones = (
                _placed(laid(byte * ours.span.nbytes, ours, values), ours.span, window)
                for byte in (b"\0", b"\xff")
            )
            free = on_zeros ^ on_ones
            reached = _placed(b"\xff" * ours.span.nbytes, ours.span, window)
            whole = whole.joined(_Imprint(on_zeros, reached ^ free))
    return whole


def _meets(span: ByteSpan, window: range) -> bool:
    return span.offset < window.stop and window.start < span.offset + span.nbytes


def _placed(data: bytes | bytearray, span: ByteSpan, window: range) -> int:
    """The bytes of a span as a number whose lowest byte is the window's first; cut at its ends."""
    away = span.offset - window.start
    cut = data[max(0, -away) : len(window) - away]
    return int.from_bytes(cut, "little") << 8 * max(0, away)

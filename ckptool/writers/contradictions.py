"""A check that patches whose targets share bytes would write the same bytes there.

Targets share bytes in tied weights, in views that overlap, and in a flat buffer and its parts. All
patches are put into a window of the file at a time, one after the other. They agree if none of
them changes a byte when it is put there once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckptool.formats.base import TensorReader
from ckptool.writers.patched_copy import Patch, laid, pieces, values_for

WINDOW = 1 << 20  # bytes


def contradiction(patches: Sequence[Patch], reader: TensorReader) -> tuple[Patch, Patch] | None:
    """Return two patches that would put different bytes in one place; None when all agree."""
    start = min(patch.place.offset for patch in patches)
    end = max(patch.place.offset + patch.place.nbytes for patch in patches)
    for at in range(start, end, WINDOW):
        if (one := _overwritten(patches, reader, at)) is not None:
            others = (p for p in patches if _overwritten((one, p), reader, at) is not None)
            return one, next(others)
    return None


def _overwritten(patches: Sequence[Patch], reader: TensorReader, at: int) -> Patch | None:
    """Return a patch whose bytes in a window another one changes; None when all agree."""
    content = bytearray(3 * WINDOW)  # pieces may begin before the window or end after it
    for patch in patches:
        _put(patch, reader, at, content)
    for patch in reversed(patches):
        if _put(patch, reader, at, content):
            return patch
    return None


def _put(patch: Patch, reader: TensorReader, at: int, content: bytearray) -> bool:
    """Put the pieces that reach into a window where they belong; return whether a byte changed."""
    has_changed = False
    for ours, theirs in pieces(patch, WINDOW):
        start = ours.span.offset - (at - WINDOW)
        stop = start + ours.span.nbytes
        if WINDOW - ours.span.nbytes < start < 2 * WINDOW:
            values, _ = values_for(patch, reader, theirs)
            there = bytes(content[start:stop])
            content[start:stop] = laid(there, ours, values)
            has_changed |= there != content[start:stop]
    return has_changed

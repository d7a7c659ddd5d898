"""Windows: runs of a file in which many small spans lie, so that one read brings them all.

A call to the system and the calls of numpy on a tensor of a few values take far longer than its
bytes do, and a checkpoint of many experts has 100,000 such tensors. They lie one behind the other,
with a header of a few dozen bytes between two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.tensors.blocks import BLOCK

SMALL = 1 << 16  # bytes of a span that is read along with others
GAP = 1 << 10  # bytes between two spans that are read along: less than another read costs


class Window(NamedTuple):
    """A run of bytes, and the spans in it that are wanted, in the order of their beginnings."""

    source: Source
    offset: int
    nbytes: int
    places: list[tuple[int, int]]  # from, to: in the window

    @property
    def span(self) -> ByteSpan:
        """The window itself."""
        return ByteSpan(self.source, self.offset, self.nbytes)


def windows(spans: Iterable[ByteSpan]) -> Iterator[Window]:
    """Yield windows of at most ``BLOCK`` bytes that hold the spans, in the order of these.

    A span that is long, that lies apart or before the last one, or behind a URL, is a window by
    itself, of any length.
    """
    source, begin, end = None, 0, 0
    places: list[tuple[int, int]] = []
    for owner, offset, nbytes in spans:
        at, stop = offset - begin, offset - begin + nbytes
        if (
            owner is source
            and nbytes <= SMALL
            and places[-1][0] <= at <= end + GAP
            and max(end, stop) <= BLOCK  # a long one may hold the next
            and owner.is_near
        ):
            places.append((at, stop))
            end = max(end, stop)
            continue
        if source is not None:
            yield Window(source, begin, end, places)
        source, begin, end, places = owner, offset, nbytes, [(0, nbytes)]
    if source is not None:
        yield Window(source, begin, end, places)


def read_each(spans: Sequence[ByteSpan], read: Callable[[ByteSpan], bytes]) -> list[bytes]:
    """Return the bytes of each of several spans; small ones near each other are read at once."""
    order = sorted(range(len(spans)), key=lambda at: (id(spans[at].source), spans[at].offset))
    found, begin = [b""] * len(spans), 0
    for window in windows(spans[at] for at in order):
        own = order[begin : begin + len(window.places)]
        data = read(window.span)
        for at, (start, stop) in zip(own, window.places, strict=True):
            found[at] = data[start:stop]
        begin += len(own)
    return found

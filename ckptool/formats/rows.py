"""Rows of pickles, streams of ``torch.save`` and arrays of numpy, one behind the other.

``pickle.load`` and ``torch.load`` leave an open file where the first object ends, so programs write
several objects into one file and load them in turn. All are followed, wherever they stand in the
row: each begins where the one before it ends, and a stream of ``torch.save`` also ends behind the
values that follow its five pickles. An array of objects is a header and a pickle.
"""

from __future__ import annotations

from ckptool.errors import UnsupportedError
from ckptool.formats.npy import HEAD_BYTES, values_at
from ckptool.formats.pickles.reader import Pickles
from ckptool.sources.base import Source
from ckptool.sources.window import Window

MAX_BEHIND = 1 << 14  # pickles, one behind the other
READ_AT_ONCE = 512  # bytes: most of many pickles are short
MOST_READ = 3  # times the file, before the windows of short pickles


def listen_to_row(
    source: Source, offset: int, pickles: Pickles, label: str = "", first: int = 1
) -> int:
    """Record the names in the row of pickles, streams and arrays that begins at ``offset``.

    ``label`` is the name of the source, and ``first`` the number of the row's first pickle in it.

    Returns:
        The offset behind the last of them.

    Raises:
        UnsupportedError: there are more than can be followed in useful time.
    """
    metered = _Metered(source, MOST_READ * source.size + MAX_BEHIND * READ_AT_ONCE)
    at, then = offset, 0  # then: where the last stream ends
    for number in range(first, MAX_BEHIND):
        if at >= source.size:
            return at
        begin = at + (values_at(source.read(at, min(HEAD_BYTES, source.size - at))) or 0)
        is_named = label and number == 1
        name = label if is_named else f"pickle {number} of {label or 'the file'}"
        heard = pickles.listen_aside(metered, min(begin, source.size), name, READ_AT_ONCE)
        if metered.left < 0:
            break
        if type(heard.value) is int and heard.value > MAX_BEHIND:
            from ckptool.formats import legacy_stream  # noqa: PLC0415 - few rows have a stream

            if heard.value == legacy_stream.MAGIC_NUMBER:
                then = max(then, legacy_stream.stream_end(source, at) or 0)
        if heard.end is None and then <= at:
            return at
        at, then = (then, 0) if heard.end is None else (heard.end, then)
    raise UnsupportedError(
        f"more pickles behind the first than can be followed (at most {MAX_BEHIND:,})",
        hint="split the file: load each object and save it to a file of its own",
    )


class _Metered(Window):
    """A source that gives only so many bytes in all."""

    def __init__(self, source: Source, allowed: int) -> None:
        super().__init__(source, 0)
        self.left = allowed

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the source.

        Raises:
            UnsupportedError: they are more than allowed.
        """
        self.left -= nbytes
        if self.left < 0:
            raise UnsupportedError("more pickles than can be followed")
        return super().read(offset, nbytes)

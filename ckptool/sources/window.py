"""Parts of another source, which are read as sources of their own.

Containers nest (a zip inside a pickle, a pickle inside a tar). The reader of the inner one counts
offsets from its beginning. The spans that it returns are those of the outermost source, so that
shared tensors have equal spans and the kernel can copy them.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckptool.sources.base import ByteSpan, Guard, Source


class Window(Source):
    """A run of bytes of ``source``, by default all from ``offset``."""

    def __init__(self, source: Source, offset: int, size: int | None = None) -> None:
        size = source.size - offset if size is None else size
        source.check_place(offset, size)
        super().__init__(source.name, size)
        self._source, self._offset = source, offset
        self.is_near = source.is_near

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the source, counted from the window's start."""
        self.check_place(offset, nbytes)
        return self._source.read(self._offset + offset, nbytes)

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with bytes of the source."""
        self.check_place(offset, len(buffer))
        self._source.fill(buffer, self._offset + offset)

    def span(self, offset: int, nbytes: int) -> ByteSpan:
        """Return the place of the bytes in the outermost source."""
        self.check_place(offset, nbytes)
        return self._source.span(self._offset + offset, nbytes)

    def is_at_hand(self, offset: int, nbytes: int) -> bool:
        """Return whether the bytes can be read without a request to a server."""
        return self._source.is_at_hand(self._offset + offset, nbytes)

    def bring(self, offset: int, nbytes: int) -> None:
        """Fetch bytes by one request if possible, and keep them."""
        self._source.bring(self._offset + offset, nbytes)

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Announce runs that will be read."""
        self._source.expect((self._offset + offset, nbytes) for offset, nbytes in runs)

    def guard(self, guards: Iterable[Guard]) -> None:
        """Have headers checked before the bytes behind them are handed out."""
        by = self._offset
        self._source.guard(
            each._replace(header=each.header + by, start=each.start + by, stop=each.stop + by)
            for each in guards
        )


class Copied(Window):
    """A run of bytes of a source that has been read already."""

    def __init__(self, data: bytes, span: ByteSpan) -> None:
        super().__init__(*span)
        self._data = data

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return a slice of the bytes that were read."""
        self.check_place(offset, nbytes)
        return self._data[offset : offset + nbytes]

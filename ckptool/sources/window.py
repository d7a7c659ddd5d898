"""Parts of another source, which are read as sources of their own.

Containers nest (a zip inside a pickle, a pickle inside a tar). The reader of the inner one counts
offsets from its beginning. The spans that it returns are those of the outermost source, so that
shared tensors have equal spans and the kernel can copy them.
"""

from __future__ import annotations

from ckptool.sources.base import ByteSpan, Source


class Window(Source):
    """A run of bytes of ``source``, by default all from ``offset``."""

    def __init__(self, source: Source, offset: int, size: int | None = None) -> None:
        size = source.size - offset if size is None else size
        source.check_place(offset, size)
        super().__init__(source.name, size)
        self._source, self._offset = source, offset

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


class Copied(Window):
    """A run of bytes of a source that has been read already."""

    def __init__(self, data: bytes, span: ByteSpan) -> None:
        super().__init__(*span)
        self._data = data

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return a slice of the bytes that were read."""
        self.check_place(offset, nbytes)
        return self._data[offset : offset + nbytes]

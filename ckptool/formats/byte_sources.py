"""Where a reader's bytes come from: a window of an open file, or bytes in memory.

Containers nest (a zip inside a pickle, a pickle inside a tar), so readers never open anything:
they are given a source, ask it for bytes by offset, and for the *place* of bytes that they leave
where they are.
"""

from __future__ import annotations

from typing import Protocol

from ckptool.errors import DamagedError
from ckptool.formats.base import SourceFile
from ckptool.tree import Blob, ByteSpan, BytesRef, SpannedBytes


class ByteSource(Protocol):
    """Bytes that can be read by offset."""

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly ``nbytes`` bytes from ``offset``.

        Raises:
            DamagedError: there are fewer.
        """

    def span(self, offset: int, nbytes: int) -> ByteSpan:
        """The same bytes as a place; not read."""


class FileWindow:
    """A run of bytes in a file; the whole file by default."""

    def __init__(self, file: SourceFile, offset: int = 0, size: int | None = None) -> None:
        self._file, self._offset = file, offset
        self.size = file.size - offset if size is None else size

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes of the file, counted from the window's start."""
        _check(offset, nbytes, self.size)
        return self._file.read(self._offset + offset, nbytes)

    def span(self, offset: int, nbytes: int) -> ByteSpan:
        """Their place in the file."""
        _check(offset, nbytes, self.size)
        return ByteSpan(self._file.path, self._offset + offset, nbytes)


class SourceWindow:
    """A run of bytes in another source."""

    def __init__(self, source: ByteSource, offset: int, size: int) -> None:
        source.span(offset, size)  # raises when it reaches past the end
        self._source, self._offset, self.size = source, offset, size

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes of the source, counted from the window's start."""
        _check(offset, nbytes, self.size)
        return self._source.read(self._offset + offset, nbytes)

    def span(self, offset: int, nbytes: int) -> ByteSpan:
        """Their place, wherever the source has it."""
        _check(offset, nbytes, self.size)
        return self._source.span(self._offset + offset, nbytes)


class MemoryBytes:
    """Bytes in memory; ``origin`` says where in a file they lie, if they do."""

    def __init__(self, data: bytes, origin: ByteSpan | None = None) -> None:
        self._data = data
        self._origin = origin or ByteSpan(Blob(data), 0, len(data))
        self.size = len(data)

    def read(self, offset: int, nbytes: int) -> bytes:
        """A slice of the bytes."""
        _check(offset, nbytes, self.size)
        return self._data[offset : offset + nbytes]

    def span(self, offset: int, nbytes: int) -> ByteSpan:
        """The slice's place in the file, or in memory."""
        _check(offset, nbytes, self.size)
        return ByteSpan(self._origin.source, self._origin.offset + offset, nbytes)


def source_of(data: bytes | bytearray | BytesRef, file: SourceFile) -> ByteSource:
    """A bytes object from a pickle in ``file`` as a source: in place where it can be."""
    if isinstance(data, BytesRef):
        if isinstance(data.span.source, Blob):
            start = data.span.offset
            return MemoryBytes(data.span.source.data[start : start + len(data)], data.span)
        return FileWindow(file, data.span.offset, data.span.nbytes)
    origin = data.span if isinstance(data, SpannedBytes) else None
    return MemoryBytes(bytes(data), origin)


def _check(offset: int, nbytes: int, size: int) -> None:
    if offset < 0 or nbytes < 0 or offset + nbytes > size:
        raise DamagedError(
            f"truncated: {nbytes} bytes expected at offset {offset}, but there are only {size}"
        )

"""Bytes in memory: decoded parts of a file, and checkpoints that never were files."""

from __future__ import annotations

from ckptool.sources.base import Source


class Memory(Source):
    """Bytes in memory; protocol 2 pickles bytes as text, so they are kept decoded."""

    def __init__(self, data: bytes, name: str = "bytes inside the pickle") -> None:
        super().__init__(name, len(data))
        self.data = data

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return a slice of the bytes."""
        self.check_place(offset, nbytes)
        return self.data[offset : offset + nbytes]

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return a slice of the bytes."""
        return self.data[offset : offset + nbytes]

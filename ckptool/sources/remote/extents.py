"""Bytes that were fetched, kept in memory up to a limit; the least recently used ones go first."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict

Data = bytes | bytearray


class Extents:
    """Runs of bytes by their offsets, which do not overlap. Its user holds a lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[int, Data] = OrderedDict()  # by offset, the last used one last
        self._starts: list[int] = []
        self._pinned: set[int] = set()
        self._nbytes = 0

    def put(self, offset: int, data: Data, *, is_pinned: bool = False) -> None:
        """Keep a run of bytes; a pinned one does not go."""
        if not data or offset in self._kept:
            return
        self._kept[offset] = data
        insort(self._starts, offset)
        self._nbytes += len(data)
        if is_pinned:
            self._pinned.add(offset)
        for old in [at for at in self._kept if at not in self._pinned and at != offset]:
            if self._nbytes <= self._limit:
                break
            self._nbytes -= len(self._kept.pop(old))
            self._starts.remove(old)

    def get(self, offset: int, nbytes: int) -> memoryview:
        """Return the bytes from ``offset`` that are kept, at most ``nbytes``; perhaps none."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0:
            return memoryview(b"")
        start = self._starts[at]
        data = self._kept[start]
        self._kept.move_to_end(start)
        return memoryview(data)[offset - start : offset - start + nbytes]

    def next_after(self, offset: int) -> int | None:
        """Return the offset of the first run behind ``offset``."""
        at = bisect_right(self._starts, offset)
        return self._starts[at] if at < len(self._starts) else None

    def holds(self, offset: int, nbytes: int) -> bool:
        """Return whether all of a run of bytes is kept."""
        while nbytes > 0:
            count = len(self.get(offset, nbytes))
            if not count:
                return False
            offset, nbytes = offset + count, nbytes - count
        return True

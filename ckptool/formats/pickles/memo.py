"""The memo of a pickle, of which most entries are never read again.

A tensor fills seven entries, and torch reads none of them but those of the first tensor. So the
reader of sentences only promises them. The entries of a promise are made, all at once, when one of
them is read. Whoever reads the memo finds what it would hold without promises:

* Promises ascend, and start above all entries so far. An entry that is stored later takes the place
  of one that was promised.
* Protocol 4 numbers entries by their count, so promises are kept before the first of these, and no
  more are given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

Promise = tuple[Callable[..., tuple[Any, ...]], tuple[Any, ...]]  # a function, its arguments


FIRST = 1 << 8  # BINPUT stores below
NEVER = 1 << 62  # above all indices


class Memo(dict[int, Any]):
    """The values of a pickle by their indices. Whoever stores above ``free`` raises it."""

    __slots__ = ("_end", "_firsts", "_promises", "free")

    def __init__(self) -> None:
        super().__init__()
        self._firsts: list[int] = []  # the first index of each promise, ascending
        self._promises: list[Promise | None] = []  # None: it was kept
        self._end = 0  # behind the last promise
        self.free = FIRST  # no entry has this index or a higher one

    def promise(self, first: int, count: int, promise: Promise) -> None:
        """Promise entries, from ``free`` or a higher index on."""
        self._firsts.append(first)
        self._promises.append(promise)
        self.free = self._end = first + count

    def __missing__(self, index: int) -> Any:
        at = bisect_right(self._firsts, index) - 1
        if at < 0 or not self._keep(at) or index not in self:
            raise KeyError(index)
        return self[index]

    def _keep(self, at: int) -> bool:
        """Make the entries of a promise, unless that was done."""
        promise, self._promises[at] = self._promises[at], None
        if promise is None:
            return False
        make, parts = promise
        for index, value in enumerate(make(*parts), self._firsts[at]):
            self.setdefault(index, value)
        return True

    def keep(self) -> None:
        """Make all entries that were promised."""
        for at in range(len(self._promises)):
            self._keep(at)

    def store(self, index: int, value: Any) -> None:
        """Store a value under any index."""
        self[index] = value
        if index >= self.free:
            self.free = index + 1

    def add(self, value: Any) -> None:
        """Store a value under the number of entries (MEMOIZE)."""
        if self.free < NEVER:
            self.keep()
            self.free = NEVER
        self[len(self)] = value

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest index; (0, 0) of an empty memo."""
        return min(self, default=0), max(max(self, default=0), self._end - 1)

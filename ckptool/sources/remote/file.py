"""A remote object as a source of bytes: few large requests, and a bounded cache in memory.

The first request fetches the end, where a zip has its directory, the second one the beginning,
where torch has its pickle and safetensors its header. Other reads fetch more than they need, and
the more the longer they go on. Values are announced (``expect``), and fetched several at once.

* What was not announced is limited: to open a checkpoint is to read names. A file that needs more
  of them than there can be is given up.
* A *frugal* source admits only samples of values that are at hand, or come with the few requests
  that are left (``FEW``): ``inspect`` leaves out the others rather than ask for each of them.
* The bytes of a zip's record begin behind its local header, whose length only the header itself
  states. To read 100,000 headers here and there would take 100,000 requests, so the reader of zips
  computes where the bytes should begin, and leaves a :class:`Guard`: the header is fetched with the
  first bytes of the record, and compared, before any byte of the record is handed out.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

from ckptool.errors import UnreadableError
from ckptool.process.allowance import ALLOWANCE
from ckptool.sources.base import Guard, Source
from ckptool.sources.remote.ahead import ReadAhead
from ckptool.sources.remote.base import RemoteObject, TransferError
from ckptool.sources.remote.extents import Extents
from ckptool.sources.remote.retries import Patience, repeated, transfer

TAIL = 256 << 10  # bytes of the first request
HEAD = 384 << 10  # bytes of the second one, if it is for the beginning
WINDOW = 128 << 10  # bytes of a read that was not announced, doubled while reads go on
MAX_WINDOW = 8 << 20
CACHE = 64 << 20  # bytes
MAX_BROUGHT = 32 << 20  # bytes of one request for a pickle
MOST = 256 << 20  # bytes that are fetched without having been announced
FEW = 4  # requests of a frugal source


class RemoteFile(Source):
    """A remote object, opened by a request for its last bytes.

    Raises:
        UnreadableError: the object cannot be read.
    """

    is_near = False

    def __init__(self, remote: RemoteObject, path: Path, patience: Patience) -> None:
        self.path = path
        self._remote, self._patience = remote, patience
        super().__init__(str(path), 0)
        try:
            tail = repeated(lambda: remote.last(TAIL), patience)
        except OSError as error:
            remote.close()
            raise self.unreadable(error) from error
        self.size = remote.size
        self.requests = 1
        self.unannounced = len(tail)  # bytes
        self._is_open = self._is_frugal = False
        self._lock = threading.RLock()
        self._cache = Extents(CACHE)
        self._cache.put(self.size - len(tail), tail, is_pinned=True)
        self._ahead = ReadAhead(self._fetched, f"read {path.name}")
        self._window, self._follows = WINDOW, -1
        self._guards = _Guards()
        ALLOWANCE.grant(self.name, self.identity, self.size)

    @property
    def identity(self) -> Hashable:
        """The URL, its query too, and the version of the object; without one only the source."""
        version = self._remote.version
        return (getattr(self.path, "url", ""), version, self.size) if version else id(self)

    def is_at(self, path: Path) -> bool:
        """Return whether ``path`` is the same URL."""
        return path == self.path

    # -------------------------------------------------------------------------------------- reading

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the object."""
        data = bytearray(max(0, min(nbytes, self.size - offset, MAX_WINDOW)))
        count = self.fetch_into(memoryview(data), offset)
        return bytes(memoryview(data)[:count])

    def fetch_into(self, buffer: memoryview, offset: int) -> int:
        """Copy bytes of the object into ``buffer``."""
        if offset >= self.size:
            return 0
        self._check_headers(offset, len(buffer))
        return self._unchecked(buffer, offset)

    def _unchecked(self, buffer: memoryview, offset: int) -> int:
        """Copy some bytes from ``offset``: announced, kept, or fetched now."""
        count = self._ahead.take(buffer, offset)
        if count is not None:
            return count
        with self._lock:  # one thread asks, the others find what it got
            nbytes = len(buffer)
            data = self._cache.get(offset, nbytes) or self._asked(offset, nbytes)
            buffer[: len(data)] = data
            return len(data)

    def _asked(self, offset: int, nbytes: int) -> memoryview:
        """Fetch bytes that nobody announced, and more behind them."""
        if offset == 0:
            self._window = HEAD
        elif offset == self._follows:
            self._window = min(2 * self._window, MAX_WINDOW)
        else:
            self._window = WINDOW
        end = min(self.size, offset + min(max(nbytes, self._window), MAX_WINDOW))
        data = self._new(offset, end)
        self._follows = offset + len(data)
        return memoryview(data)[:nbytes]

    def _new(self, offset: int, end: int) -> bytearray:
        """Fetch bytes up to ``end``, or up to the next ones that are kept."""
        end = min(end, self._cache.next_after(offset) or end)
        self.unannounced += end - offset
        if self.unannounced > MOST and not self._is_open:
            raise TransferError(
                f"more than {MOST:,} bytes are needed to open it",
                "download the file and name it",
            )
        data = bytearray(end - offset)
        self._fetched(memoryview(data), offset)
        self._cache.put(offset, data, is_pinned=offset == 0)
        return data

    def _fetched(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer by requests."""
        self.requests += 1
        transfer(self._remote, buffer, offset, self._patience)

    # ------------------------------------------------------------------------------- announcements

    def _missing(self, run: tuple[int, int]) -> tuple[int, int]:
        """Return a run without its beginning that is kept."""
        offset, nbytes = run
        with self._lock:
            while nbytes and (kept := len(self._cache.get(offset, nbytes))):
                offset, nbytes = offset + kept, nbytes - kept
        return offset, nbytes

    def lift(self) -> None:
        """Let all bytes be read from now on."""
        self._is_open = True

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Fetch runs of bytes before they are read."""
        wanted = self._guards.widened(runs)
        self._ahead.expect(run for run in map(self._missing, wanted) if run[1])

    def be_frugal(self) -> None:
        """Admit only samples that cost few requests from now on."""
        self._is_frugal = True

    def admits(self, offset: int, nbytes: int) -> bool:
        """Return whether a sample may be read: any, or of a frugal source what is at hand."""
        return not self._is_frugal or all(
            self.is_at_hand(start, end - start)
            for start, end in [
                (offset, min(offset + nbytes, self.size)),
                *((guard.header, guard.start) for guard in self._guards.unchecked(offset, nbytes)),
            ]
        )

    @property
    def window(self) -> int:
        """The bytes of a window, while a frugal source can fetch two of them."""
        return WINDOW if self._is_frugal and self.requests + 2 <= FEW else 0

    def bring(self, offset: int, nbytes: int) -> None:
        """Fetch bytes, and keep them as long as they have room."""
        offset = min([offset, *(guard.header for guard in self._guards.unchecked(offset, 1))])
        end = min(offset + nbytes, self.size)
        with self._lock:
            while offset < end:
                kept = len(self._cache.get(offset, end - offset))
                offset += kept or len(self._new(offset, min(end, offset + MAX_BROUGHT)))

    def is_at_hand(self, offset: int, nbytes: int) -> bool:
        """Return whether the bytes were fetched already."""
        with self._lock:
            return self._cache.holds(offset, nbytes)

    # --------------------------------------------------------------------------------------- guards

    def guard(self, guards: Iterable[Guard]) -> None:
        """Check a header before the bytes behind it are handed out."""
        self._guards.add(guards)

    def _check_headers(self, offset: int, nbytes: int) -> None:
        for guard in self._guards.unchecked(offset, nbytes):
            header = bytearray(guard.start - guard.header)
            at, rest = guard.header, memoryview(header)
            while rest:
                count = self._unchecked(rest, at)
                at, rest = at + count, rest[count:]
            guard.check(bytes(header))
            self._guards.passed(guard)

    # ----------------------------------------------------------------------------------------- end

    def close(self) -> None:
        """Close the connections, and forget all bytes."""
        self._ahead.close()
        self._remote.close()

    def unreadable(self, error: OSError) -> UnreadableError:
        """Return the error that says why the object cannot be read, and what to do."""
        if isinstance(error, TransferError):
            return UnreadableError(error.message, path=self.path, hint=error.hint)
        return super().unreadable(error)


class _Guards:
    """Guards by the offset of the bytes that they guard; each is passed once."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._by_start: dict[int, Guard] = {}

    def add(self, guards: Iterable[Guard]) -> None:
        self._by_start |= {guard.start: guard for guard in guards}
        self._starts = sorted(self._by_start)

    def passed(self, guard: Guard) -> None:
        """Let everything behind a header be read from now on."""
        self._by_start.pop(guard.start, None)

    def unchecked(self, offset: int, nbytes: int) -> list[Guard]:
        """Return the guards of the bytes that a run holds."""
        if not self._by_start:
            return []
        first = max(0, bisect_right(self._starts, offset) - 1)
        last = bisect_right(self._starts, offset + nbytes - 1)
        found = (self._by_start.get(start) for start in self._starts[first:last])
        return [guard for guard in found if guard is not None and guard.stop > offset]

    def widened(self, runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield the runs, those with an unchecked header in front begun at the header."""
        for offset, nbytes in runs:
            guards = self.unchecked(offset, nbytes)
            start = min([offset, *(guard.header for guard in guards)])
            if start < offset and guards[0].start < offset:  # the run begins inside a record
                yield guards[0].header, guards[0].start - guards[0].header
                start = offset
            yield start, offset + nbytes - start

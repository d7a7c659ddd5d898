"""Bytes that will be read, fetched before they are: several large runs at once.

A command announces the runs that it will read, in their order. Runs that lie close together are
fetched as one, long ones in chunks. When the first of them is read, a few threads fetch the others
in the order in which they are read first, as far ahead as the memory allows that all objects have
together. A reader that comes to a chunk first fetches it itself, so nothing waits for room for
ever. A chunk is dropped when all that was announced of it has been read.

A request takes a round trip before its first byte. With 50 ms for it, 12 threads that fetch 8 MiB
each can receive 1.9 GB a second.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto

CHUNK = 8 << 20  # bytes of a request
ROOM = 128 << 20  # bytes of chunks of all objects that were fetched and not yet read
THREADS = 12  # more than wait for a first byte at a time; connections to a server
FAR = 1 << 37  # bytes that are announced at once: a server may claim any size
MAX_GAP = 1 << 16  # bytes between two runs that are fetched as one,
SHARE = 100  # and at most one in so many of the bytes before them,
MIN_GAP = 1 << 9  # but always so many: headers between records

Fetch = Callable[[memoryview, int], None]  # fills a buffer from an offset


class State(Enum):
    """The states of a chunk."""

    WAITING = auto()
    COMING = auto()
    HERE = auto()
    GONE = auto()  # read to its end


class Chunk:
    """A run of bytes that is one request."""

    __slots__ = ("data", "error", "left", "readers", "start", "state", "stop")

    def __init__(self, start: int, stop: int, left: int) -> None:
        self.start, self.stop = start, stop
        self.left = left  # bytes that are still to be read
        self.state = State.WAITING
        self.data = bytearray()  # at least as long as the run
        self.readers = 0  # that copy from it
        self.error: Exception | None = None


class Held:
    """The memory that the chunks of all objects take.

    Buffers are used again, since the system clears new memory page by page. That took as long as to
    receive the bytes.
    """

    def __init__(self) -> None:
        self._nbytes = 0  # of the buffers of chunks
        self._free: list[bytearray] = []  # of CHUNK bytes each
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        """Count the buffer of a chunk that will be fetched."""
        with self._lock:
            self._nbytes += _buffer_size(nbytes)

    def has_room(self, nbytes: int) -> bool:
        """Return whether so many more bytes may be fetched ahead."""
        with self._lock:
            return self._nbytes + _buffer_size(nbytes) <= ROOM

    def buffer(self, nbytes: int) -> bytearray:
        """Return a buffer for a chunk that was counted; it may be longer."""
        size = _buffer_size(nbytes)
        with self._lock:
            if self._free and size == CHUNK:
                return self._free.pop()
            while self._free and self._nbytes + len(self._free) * CHUNK > ROOM:
                self._free.pop()
        return bytearray(size)

    def give_back(self, nbytes: int, buffer: bytearray) -> None:
        """Count a chunk no more, and keep its buffer while there are others."""
        with self._lock:
            self._nbytes -= _buffer_size(nbytes)
            if len(buffer) == CHUNK:
                self._free.append(buffer)
            if not self._nbytes:
                self._free.clear()


def _buffer_size(nbytes: int) -> int:
    """Return the size of a chunk's buffer: one for all that are long, so that it is used again."""
    return nbytes if nbytes <= CHUNK // 2 else CHUNK


HELD = Held()


class ReadAhead:
    """The chunks of one object, and the threads that fetch them."""

    def __init__(self, fetch: Fetch, name: str) -> None:
        self._fetch, self._name = fetch, name
        self._chunks: list[Chunk] = []  # by offset
        self._starts: list[int] = []
        self._order: list[Chunk] = []  # as announced, what is still to be fetched last
        self._changed = threading.Condition()
        self._threads = 0
        self._is_closed = False

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Announce runs (offset, bytes) that will be read, about in this order."""
        with self._changed:
            new = [chunk for chunk in _chunks(runs) if self._find(chunk.start) is None]
            new = [chunk for chunk in new if self._find(chunk.stop - 1) is None]
            self._chunks = sorted([*self._live(), *new], key=lambda chunk: chunk.start)
            self._starts = [chunk.start for chunk in self._chunks]
            self._order = [*reversed(new), *self._order]

    def take(self, buffer: memoryview, offset: int) -> int | None:
        """Copy bytes from ``offset`` into ``buffer``; return their number; None: not announced.

        Raises:
            OSError: they cannot be fetched.
        """
        with self._changed:
            chunk = self._find(offset)
            if chunk is None:
                return None
            is_first = chunk.state is State.WAITING
            if is_first:
                self._begin(chunk)
            self._start()
        if is_first:
            self._bring(chunk)
        with self._changed:
            self._changed.wait_for(lambda: chunk.state is not State.COMING)
            if chunk.state is State.GONE:
                return None
            if chunk.error is not None:
                raise chunk.error
            chunk.readers += 1
        start, count = offset - chunk.start, min(len(buffer), chunk.stop - offset)
        buffer[:count] = memoryview(chunk.data)[start : start + count]
        with self._changed:
            chunk.readers -= 1
            chunk.left -= count
            if chunk.left <= 0 or self._is_closed:
                self._drop(chunk)
        return count

    def close(self) -> None:
        """Let the threads end, and drop everything."""
        with self._changed:
            self._is_closed = True
            for chunk in self._chunks:
                self._drop(chunk)
            self._order.clear()
            self._chunks.clear()
            self._starts.clear()
            self._changed.notify_all()

    # -------------------------------------------------------------------------------- in the lock

    def _live(self) -> list[Chunk]:
        return [chunk for chunk in self._chunks if chunk.state is not State.GONE]

    def _find(self, offset: int) -> Chunk | None:
        at = bisect_right(self._starts, offset) - 1
        chunk = self._chunks[at] if at >= 0 else None
        return chunk if chunk is not None and offset < chunk.stop else None

    def _begin(self, chunk: Chunk) -> None:
        chunk.state = State.COMING
        HELD.add(chunk.stop - chunk.start)

    def _start(self) -> None:
        """Start as many threads as there are chunks for, within the limit."""
        while self._order and self._order[-1].state is not State.WAITING:
            self._order.pop()
        while self._threads < min(THREADS, len(self._order)):
            self._threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _drop(self, chunk: Chunk) -> None:
        if chunk.state is State.HERE and not chunk.readers:
            HELD.give_back(chunk.stop - chunk.start, chunk.data)
            chunk.state, chunk.data = State.GONE, bytearray()
            self._changed.notify_all()

    def _next(self) -> Chunk | None:
        """Return the next chunk to fetch ahead; wait for room; None: there is nothing to do."""
        while True:
            while self._order and self._order[-1].state is not State.WAITING:
                self._order.pop()
            if self._is_closed or not self._order:
                return None
            chunk = self._order[-1]
            if HELD.has_room(chunk.stop - chunk.start):
                self._begin(self._order.pop())
                return chunk
            self._changed.wait()  # until one of our own was read

    # ---------------------------------------------------------------------------------- outside it

    def _work(self) -> None:
        while True:
            with self._changed:
                chunk = self._next()
                if chunk is None:
                    self._threads -= 1
                    return
            self._bring(chunk)

    def _bring(self, chunk: Chunk) -> None:
        nbytes = chunk.stop - chunk.start
        data = bytearray()
        error: Exception | None = None
        try:
            data = HELD.buffer(nbytes)
            self._fetch(memoryview(data)[:nbytes], chunk.start)
        except Exception as raised:  # noqa: BLE001 - raised again where the bytes are read
            error = raised
        with self._changed:
            chunk.data, chunk.error, chunk.state = data, error, State.HERE
            if self._is_closed:
                self._drop(chunk)
            self._changed.notify_all()


def _chunks(runs: Iterable[tuple[int, int]]) -> list[Chunk]:
    """Return the chunks in the order in which their first bytes are read."""
    bounded = enumerate(_bounded(runs))
    placed = sorted((start, start + size, nth) for nth, (start, size) in bounded if size)
    joined: list[_Joined] = []
    for start, stop, nth in placed:
        if not joined or not joined[-1].takes(start):
            joined.append(_Joined(start))
        joined[-1].add(start, stop, nth)
    cut = [chunk for run in joined for chunk in run.chunks()]
    return [chunk for _, chunk in sorted(cut, key=lambda each: each[0])]


def _bounded(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the runs up to ``FAR`` bytes in all."""
    room = FAR
    for start, size in runs:
        yield start, min(size, room)
        room -= min(size, room)
        if not room:
            return


class _Joined:
    """Runs that lie close together."""

    def __init__(self, start: int) -> None:
        self.start = self.stop = start
        self.wanted = 0  # bytes
        # By the index of the chunk: the bytes to read, and the place of the earliest of them in the
        # order of reading.
        self.left: Counter[int] = Counter()
        self.first: dict[int, int] = {}

    def takes(self, start: int) -> bool:
        """Return whether a run that begins there is near enough to be fetched along."""
        return start - self.stop <= max(MIN_GAP, min(MAX_GAP, self.wanted // SHARE))

    def add(self, start: int, stop: int, nth: int) -> None:
        self.stop = max(self.stop, stop)
        self.wanted += stop - start
        while start < stop:
            index = (start - self.start) // CHUNK
            end = min(stop, self.start + (index + 1) * CHUNK)
            self.left[index] += end - start
            self.first[index] = min(nth, self.first.get(index, nth))
            start = end

    def chunks(self) -> Iterator[tuple[tuple[int, int], Chunk]]:
        """Yield the chunks, each with its place in the order of reading."""
        for index, at in enumerate(range(self.start, self.stop, CHUNK)):
            place = self.first[index], at
            yield place, Chunk(at, min(at + CHUNK, self.stop), self.left[index])

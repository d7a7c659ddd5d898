"""Sources of bytes that can be read at any offset.

A format reads a checkpoint from a :class:`Source` and describes each tensor by a :class:`ByteSpan`,
a run of bytes of that source. The rest of the package does not know where a checkpoint is kept, but
for two abilities: the descriptor of a file on this machine lets the kernel copy and map it, and a
path names the source in messages and leads to the files beside it.

A new kind of source defines ``fetch``, which may return fewer bytes than requested and may raise
``OSError``. This module turns both into complete reads or into errors that name the source.
Readers request few large runs rather than many small ones, so a request can be expensive. Where it
is (``is_near`` is false), they announce the runs that they will read (``expect``), do without
headers that are not at hand (``guard``), and leave out samples (``admits``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from ckptool.errors import DamagedError, UnreadableError
from ckptool.records import NamedTuple

MAX_REQUEST = 1 << 30  # bytes of one request to a source

Item = TypeVar("Item")


class ByteSpan(NamedTuple):
    """A run of bytes of a source; a named tuple, since every tensor has one."""

    source: Source
    offset: int  # bytes from the start of the source
    nbytes: int


def overlapping(spanned: Iterable[tuple[ByteSpan, Item]]) -> Iterator[list[Item]]:
    """Yield the items whose bytes overlap, together and in the order of their bytes."""
    group: list[Item] = []
    source, end = None, 0
    for span, item in sorted(spanned, key=lambda each: (id(each[0].source), each[0].offset)):
        if span.source is not source or span.offset >= end:
            if len(group) > 1:
                yield group
            group, source, end = [], span.source, 0
        group.append(item)
        end = max(end, span.offset + span.nbytes)
    if len(group) > 1:
        yield group


class Guard(NamedTuple):
    """A header that has to be checked before the bytes behind it are read."""

    header: int  # offset of the header, which ends at ``start``
    start: int  # offset of the bytes that it describes
    stop: int
    check: Callable[[bytes], None]  # raises DamagedError where the header is another one


class Closing:
    """A context manager that calls its own ``close`` at the end."""

    __slots__ = ()

    def close(self) -> None:
        """Release what is held; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


class Source(Closing):
    """A known number of bytes, read by offset; a context manager that equals only itself."""

    path: Path | None = None  # the path that leads to it, here or behind a URL
    is_computed = False  # made from other sources when it is read
    keeps: int = 0  # bytes of memory that it takes from its first read until it is closed
    is_near: bool = True  # a read costs about as much as copying the bytes
    archive: Any = None  # of a zip, whose directory takes long to read: kept by ``formats/zips``

    def __init__(self, name: str, size: int) -> None:
        self.name = name  # for messages
        self.size = size  # bytes

    # ------------------------------------------------------------ methods that each kind defines

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return up to ``nbytes`` bytes from ``offset``; none only at the end of the source.

        Raises:
            OSError: the bytes cannot be read.
        """
        raise NotImplementedError

    def fetch_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the beginning of ``buffer`` from ``offset``; return the number of bytes."""
        data = self.fetch(offset, min(len(buffer), MAX_REQUEST))
        buffer[: len(data)] = data[: len(buffer)]
        return len(data)

    @property
    def identity(self) -> Hashable:
        """A value that is equal for two sources that opened the same bytes."""
        return self

    @property
    def changed_at(self) -> float | None:
        """The time of the last change in seconds since 1970; None where it is not known."""
        return None

    def is_at(self, path: Path) -> bool:  # noqa: ARG002
        """Return whether ``path`` leads to these bytes."""
        return False

    def has_changed(self) -> bool:
        """Return whether the bytes may have changed since the source was opened."""
        return False

    def fileno(self) -> int | None:
        """Return a descriptor from which the kernel reads the same bytes; None: there is none."""
        return None

    # ------------------------------------------------ announcements, for sources that are not near

    def lift(self) -> None:
        """Let all bytes be read from now on: the checkpoint is open, so its names were read."""

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Announce runs (offset, bytes) that will be read, about in this order."""

    def is_at_hand(self, offset: int, nbytes: int) -> bool:  # noqa: ARG002
        """Return whether the bytes can be read without a request to a server."""
        return True

    def guard(self, guards: Iterable[Guard]) -> None:
        """Have headers checked before the bytes behind them are handed out, if not at hand now."""

    def be_frugal(self) -> None:
        """Admit only samples that cost few requests from now on."""

    def admits(self, offset: int, nbytes: int) -> bool:  # noqa: ARG002
        """Return whether a sample of values may be read there."""
        return True

    @property
    def window(self) -> int:
        """The bytes that :meth:`bring` would fetch; 0: no sample has to be fetched, or none may."""
        return 0

    def bring(self, offset: int, nbytes: int) -> None:
        """Fetch bytes by one request if possible, and keep them; samples are admitted there."""

    # --------------------------------------------------------------------- methods of all sources

    @property
    def place(self) -> Path:
        """The path that leads to it; of other sources, their name as a path."""
        return self.path or Path(self.name)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``.

        Raises:
            DamagedError: the source ends before.
            UnreadableError: the bytes cannot be read.
        """
        self.check_place(offset, nbytes)
        parts = []
        while nbytes:
            asked = min(nbytes, MAX_REQUEST)
            try:
                part = self.fetch(offset, asked)
            except OSError as error:
                raise self.unreadable(error) from error
            if not 0 < len(part) <= asked:
                raise self._answered(len(part), asked)
            parts.append(part)
            offset, nbytes = offset + len(part), nbytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset``.

        Raises:
            DamagedError: the source ends before.
            UnreadableError: the bytes cannot be read.
        """
        self.check_place(offset, len(buffer))
        while buffer:
            try:
                count = self.fetch_into(buffer, offset)
            except OSError as error:
                raise self.unreadable(error) from error
            if not 0 < count <= len(buffer):
                raise self._answered(count, len(buffer))
            buffer, offset = buffer[count:], offset + count

    def head(self, nbytes: int) -> bytes:
        """Return the first bytes, at most ``nbytes`` of them."""
        return self.read(0, min(nbytes, self.size))

    def span(self, offset: int, nbytes: int) -> ByteSpan:
        """Return the place of ``nbytes`` bytes from ``offset``, unread.

        Raises:
            DamagedError: the source ends before.
        """
        self.check_place(offset, nbytes)
        return ByteSpan(self, offset, nbytes)

    def check_place(self, offset: int, nbytes: int) -> None:
        """Refuse a run of bytes that is not wholly in the source.

        Raises:
            DamagedError: the run reaches past an end.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise DamagedError(
                f"truncated: {nbytes} bytes expected at offset {offset}, but there are only "
                f"{self.size} ({offset + nbytes - self.size} bytes short)",
                path=self.path,
            )

    def unreadable(self, error: OSError) -> UnreadableError:
        """Return the error that says why the bytes cannot be read."""
        reason = error.strerror or str(error) or type(error).__name__
        return UnreadableError(reason, path=self.path or self.name)

    def _answered(self, count: int, wanted: int) -> DamagedError | UnreadableError:
        if count:
            return UnreadableError(
                f"it answered with {count:,} bytes where {wanted:,} were asked for",
                path=self.path or self.name,
            )
        return DamagedError(
            "the file became shorter while it was read",
            path=self.path or self.name,
            hint="wait until the job that writes it has finished",
        )

    def __repr__(self) -> str:
        return f"<{self.name}>"

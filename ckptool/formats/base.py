"""What a format is and what it returns.

A format is one module with a :class:`CheckpointFormat`: it recognises its files by their first
bytes and turns one into a :class:`Checkpoint`. Formats read through a :class:`SourceFile`, which
checks what it is given (only regular files, never past the end), so that a short file is an error
and never a short read.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from ckptool.errors import DamagedError, UnreadableError
from ckptool.tree import Blob, ByteSpan, GlobalRef, Opaque, Tree

READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # nonblocking: opening a fifo must not hang

_REASONS = {
    errno.ENOENT: ("no such file", "check the spelling; ls shows what is there"),
    errno.ENOTDIR: ("no such file", "a part of the path is a file, not a directory"),
    errno.EACCES: ("permission denied", "ls -l shows who may read it"),
    errno.ELOOP: ("a loop of symbolic links", "readlink -f shows where it leads"),
    errno.ENAMETOOLONG: ("the path is too long for the file system", None),
}


class SourceFile:
    """A regular file, open for reading at any place; never mapped, never written.

    Raises:
        UnreadableError: missing, not permitted, or not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, READ_FLAGS)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        self.status = os.fstat(self.fd)
        if not stat.S_ISREG(self.status.st_mode):
            os.close(self.fd)
            raise UnreadableError(_kind(self.status.st_mode), path=path)
        self.size = self.status.st_size

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly ``nbytes`` bytes from ``offset``.

        Raises:
            DamagedError: the file ends before.
        """
        self._check_place(offset, nbytes)
        parts = []
        while nbytes:
            try:
                part = os.pread(self.fd, min(nbytes, 1 << 30), offset)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if not part:
                raise self._shorter()
            parts.append(part)
            offset, nbytes = offset + len(part), nbytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fill(self, room: memoryview, offset: int) -> None:
        """The bytes from ``offset`` in memory that is there already, and near the processor.

        Raises:
            DamagedError: the file ends before.
        """
        self._check_place(offset, len(room))
        while room:
            try:
                count = os.preadv(self.fd, [room], offset)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if not count:
                raise self._shorter()
            room, offset = room[count:], offset + count

    def _check_place(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            missing = offset + nbytes - self.size
            raise DamagedError(
                f"truncated: {nbytes} bytes expected at offset {offset}, "
                f"but the file ends at {self.size} ({missing} bytes short)",
                path=self.path,
            )

    def _shorter(self) -> DamagedError:
        return DamagedError(
            "the file became shorter while it was read",
            path=self.path,
            hint="wait until the job that writes it has finished",
        )

    def head(self, nbytes: int) -> bytes:
        """The first bytes, at most ``nbytes`` of them."""
        return self.read(0, min(nbytes, self.size))

    def close(self) -> None:
        """Give the file descriptor back; harmless when done twice."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # of a file that was only read, nothing can be lost
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _unreadable(path: Path, error: OSError | ValueError) -> UnreadableError:
    number = error.errno if isinstance(error, OSError) else None
    reason, hint = _REASONS.get(number or 0, (getattr(error, "strerror", None) or str(error), None))
    file, _, address = str(path).partition("#")
    if number == errno.ENOENT and file and address and os.path.exists(file):  # noqa: PTH110
        hint = f"this command takes no #ADDRESS: name the file alone, {file}"
    return UnreadableError(reason, path=path, hint=hint)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory, not a checkpoint file"),
        (stat.S_ISFIFO, "a pipe, not a regular file"),
        (stat.S_ISSOCK, "a socket, not a regular file"),
    )
    return next((text for test, text in kinds if test(mode)), "a device, not a regular file")


class TensorReader:
    """Reads the bytes behind spans; opens each file once and keeps it open."""

    def __init__(self, *opened: SourceFile) -> None:
        self._files = {file.path: file for file in opened}
        self._opening = Lock()  # threads read

    def file(self, path: Path) -> SourceFile:
        """The open file at ``path``."""
        if path not in self._files:
            with self._opening:
                if path not in self._files:
                    self._files[path] = SourceFile(path)
        return self._files[path]

    @property
    def opened(self) -> tuple[SourceFile, ...]:
        """The files that are open."""
        return tuple(self._files.values())

    def read(self, span: ByteSpan, start: int = 0, nbytes: int | None = None) -> bytes:
        """``nbytes`` bytes of the span from ``start``; by default all from there on."""
        count = span.nbytes - start if nbytes is None else min(nbytes, span.nbytes - start)
        if isinstance(span.source, Blob):
            begin = span.offset + start
            return span.source.data[begin : begin + count]
        return self.file(span.source).read(span.offset + start, count)

    def read_into(self, room: memoryview, span: ByteSpan) -> bytes | memoryview:
        """All bytes of a span: in ``room``, when they come from a file and fit."""
        if isinstance(span.source, Blob) or span.nbytes > len(room):
            return self.read(span)
        filled = room[: span.nbytes]
        self.file(span.source).fill(filled, span.offset)
        return filled

    def refuse_changed(self) -> None:
        """Make sure that no file was written to since it was opened.

        Raises:
            DamagedError: one was; what was read of it may be of two versions.
        """
        for file in self._files.values():
            now = os.fstat(file.fd)
            if (now.st_size, now.st_mtime_ns) != (file.status.st_size, file.status.st_mtime_ns):
                raise DamagedError(
                    "the file was written to while it was read",
                    path=file.path,
                    hint="wait until the job that writes it has finished",
                )

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()


class NamedGlobal(NamedTuple):
    """A class or function that a pickle names, and what it would do with it."""

    ref: GlobalRef
    called: bool  # by REDUCE, OBJ, INST or NEWOBJ_EX: run as a function if a loader obeyed
    pickle: str  # the pickle that names it: data.pkl, or an address inside another
    uses: tuple[Opaque, ...] = ()  # the first of its calls, when they are none that we understand
    looks_up: bool = False  # getattr, and all that it is called for is a public part of a class


class Note(NamedTuple):
    """Something that a format has to say of a file that it reads all the same."""

    rule: str  # CK111
    severity: str  # error | warning | info
    address: str  # the part of the container
    message: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint: a tree, and the reader for the bytes behind it. A context manager."""

    path: Path
    format_name: str  # torch-zip, torch-legacy, torch-tar, safetensors, pickle
    size_bytes: int  # of the file, or of all files
    tree: Tree
    reader: TensorReader
    globals_named: tuple[NamedGlobal, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)  # what the container says of itself
    notes: tuple[Note, ...] = ()  # where other readers could see another file in the same bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the tree stays usable, its values do not."""
        self.reader.close()


class CheckpointFormat(Protocol):
    """A row of ``FORMATS``."""

    name: str

    def matches(self, head: bytes) -> bool:
        """Whether the file is of this format; ``head`` is its first 4 KiB."""

    def open(self, file: SourceFile) -> Checkpoint:
        """The file as a checkpoint, which from then on owns it.

        Raises:
            DamagedError: the file breaks the rules of the format.
        """


class FolderFormat(Protocol):
    """A row of ``FOLDER_FORMATS``: a folder that is one checkpoint."""

    name: str

    def matches(self, folder: Path) -> bool:
        """Whether the folder is of this format."""

    def open(self, folder: Path) -> Checkpoint:
        """The folder as a checkpoint.

        Raises:
            DamagedError: the folder breaks the rules of the format.
        """

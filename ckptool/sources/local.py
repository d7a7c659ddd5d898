"""Regular files on this machine, opened for reads at any offset; never mapped or written."""

from __future__ import annotations

import errno
import os
import stat
from _thread import allocate_lock  # see formats/base.py
from contextlib import suppress
from itertools import islice
from pathlib import Path

from ckptool.errors import UnreadableError
from ckptool.process.allowance import ALLOWANCE
from ckptool.regex import regex
from ckptool.sources.base import Source

# Nonblocking, since opening a fifo must not hang; binary, since Windows would change line ends.
READ_FLAGS = os.O_RDONLY
for _flag in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT"):
    READ_FLAGS |= getattr(os, _flag, 0)

_REASONS = {
    errno.ENOENT: ("no such file", "check the spelling; ls shows what is there"),
    errno.ENOTDIR: ("no such file", "a part of the path is a file, not a directory"),
    errno.EACCES: ("permission denied", "ls -l shows who may read it"),
    errno.ELOOP: ("a loop of symbolic links", "readlink -f shows where it leads"),
    errno.EMFILE: (
        "too many open files",
        "ulimit -n shows the limit of this process, and ulimit -n 4096 raises it",
    ),
    errno.ENAMETOOLONG: ("the path is too long for the file system", None),
}
# Test of a file's mode -> what the file is, and what to do instead; the last one is any other.
_IRREGULAR = (
    (stat.S_ISDIR, "a directory", "ckptool inspect shows the checkpoints in it"),
    (stat.S_ISFIFO, "a pipe", "write it to a file first"),
    (stat.S_ISSOCK, "a socket", None),
    (bool, "a device", None),
)
_SLASHLESS = regex("([a-z][a-z0-9]+):/([^/].*)")  # a URL that lacks a slash
HAS_READS_AT_OFFSETS = hasattr(os, "preadv")  # Windows has none
_moving = allocate_lock()  # held where there are none: descriptors have one position


class LocalFile(Source):
    """A regular file.

    Raises:
        UnreadableError: the file is missing, not permitted or not regular.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, READ_FLAGS)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        self.status = os.fstat(self.fd)
        if not stat.S_ISREG(self.status.st_mode):
            os.close(self.fd)
            raise _irregular(path, self.status.st_mode)
        super().__init__(str(path), self.status.st_size)
        self.allow()

    def allow(self) -> None:
        """Add the work for this file to what the process may do."""
        ALLOWANCE.grant(self.name, self.identity, self.size)

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the file."""
        if HAS_READS_AT_OFFSETS:
            return os.pread(self.fd, nbytes, offset)
        with _moving:
            os.lseek(self.fd, offset, os.SEEK_SET)
            return os.read(self.fd, nbytes)

    def fetch_into(self, buffer: memoryview, offset: int) -> int:
        """Read into ``buffer``, memory that is allocated already and near the CPU."""
        if HAS_READS_AT_OFFSETS:
            return os.preadv(self.fd, [buffer], offset)
        data = self.fetch(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @property
    def identity(self) -> tuple[int, int]:
        """The device and the inode, which all names of a file have in common."""
        return self.status.st_dev, self.status.st_ino

    @property
    def changed_at(self) -> float:
        """The file's time of change when it was opened."""
        return self.status.st_mtime

    def is_at(self, path: Path) -> bool:
        """Return whether ``path`` is a name of the file."""
        try:
            return os.path.samestat(self.status, path.stat())
        except OSError:
            return False

    def has_changed(self) -> bool:
        """Return whether the file was written to since it was opened."""
        then, now = self.status, os.fstat(self.fd)
        return (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # a file that was only read loses nothing
                os.close(fd)

    def unreadable(self, error: OSError) -> UnreadableError:
        """Return the error that says why the file cannot be read."""
        return _unreadable(self.path, error)


class BoundedFile(LocalFile):
    """A file of which at most ``most`` bytes are read until :meth:`lift` is called.

    To open a checkpoint is to read its names. A stranger's file that needs more of them than there
    can be is given up, whatever it holds.
    """

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self.taken = 0  # bytes that were read
        self._most: int | None = most

    def lift(self) -> None:
        """Let all bytes be read from now on."""
        self._most = None

    def allow(self) -> None:
        """Allow no work: nobody asked for this file."""

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the file."""
        self._take(offset, nbytes)
        return super().fetch(offset, nbytes)

    def fetch_into(self, buffer: memoryview, offset: int) -> int:
        """Read into ``buffer``."""
        self._take(offset, len(buffer))
        return super().fetch_into(buffer, offset)

    def _take(self, offset: int, nbytes: int) -> None:
        self.taken += max(min(nbytes, self.size - offset), 0)
        if self._most is not None and self.taken > self._most:
            raise OSError(errno.EFBIG, f"more than {self._most:,} bytes of names and the like")


MOST = 10_000  # names of a directory that are looked through
ALIKE = 0.75  # of the letters of a name


def _alike(path: Path) -> Path | None:
    """Return the file or directory beside a missing one whose name is much like it."""
    from difflib import get_close_matches  # noqa: PLC0415 - for an error alone

    try:
        with os.scandir(path.parent) as entries:
            names = sorted(entry.name for entry in islice(entries, MOST))
    except OSError:
        return None
    found = get_close_matches(path.name, names, 1, ALIKE)
    return path.parent / found[0] if found else None


def _unreadable(path: Path, error: OSError | ValueError) -> UnreadableError:
    number = error.errno if isinstance(error, OSError) else None
    reason, hint = _REASONS.get(number or 0, (getattr(error, "strerror", None) or str(error), None))
    file, _, address = str(path).partition("#")
    if number == errno.ENOENT and file and address and os.path.exists(file):  # noqa: PTH110
        hint = f"this command takes no #ADDRESS: name the file alone, {file}"
    elif number == errno.ENOENT and (scheme := _SLASHLESS.match(str(path))):
        hint = f"a URL has two slashes: {scheme[1]}://{scheme[2]}"
    elif number == errno.ENOENT and (meant := _alike(path)):
        hint = f"did you mean {meant}?"
    return UnreadableError(reason, path=path, hint=hint)


def _irregular(path: Path, mode: int) -> UnreadableError:
    kind, hint = next(row for test, *row in _IRREGULAR if test(mode))
    return UnreadableError(f"{kind}, not a regular file", path=path, hint=hint)

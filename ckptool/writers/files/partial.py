"""The partial file of an output: hidden beside it, new, locked by this run.

Its name is always the same, so that the next run for the same output finds the file of a killed
run. The lock ends with the process that holds it, and so tells a running process from a killed one.
Another run may do the same between any two steps, so a file is compared with the open one before it
is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptool.errors import OutputError

PARTIAL = ".ckptool.partial"  # .NAME.ckptool.partial: no name that a user would choose
MAX_NAME = 255  # bytes
ATTEMPTS = 5  # at creating the file while other runs remove it
NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK})


def partial_beside(target: Path) -> Path:
    """Return a hidden name that only ckptool uses, cut to the length that a directory allows."""
    room = MAX_NAME - len(f".{PARTIAL}")
    name = os.fsencode(target.name)[:room].decode(errors="ignore")
    return target.with_name(f".{name}{PARTIAL}")


def target_of(partial: Path) -> Path | None:
    """Return the target of a partial file; None for other files and for names that were cut."""
    name = partial.name
    is_partial = name.startswith(".") and name.endswith(PARTIAL)
    return partial.with_name(name[1 : -len(PARTIAL)]) if is_partial else None


def create(partial: Path, target: Path) -> int:
    """Create the partial file and lock it; replace one that a killed run left behind."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(ATTEMPTS):
        try:
            fd = os.open(partial, flags, 0o600)
        except FileExistsError:
            _remove_abandoned(partial, target)
            continue
        try:
            _lock(fd)
            if is_at(partial, fd):
                return fd
        except BlockingIOError:  # another run took it for abandoned before we had locked it
            pass
        except BaseException:
            remove(partial, fd)
            os.close(fd)
            raise
        os.close(fd)
    raise in_use(target)


def _remove_abandoned(partial: Path, target: Path) -> None:
    """Remove the partial file of a killed run.

    Raises:
        OutputError: a run holds its lock, or the file system has no locks.
    """
    try:
        # For writing, without which NFS gives no exclusive lock.
        fd = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not _lock(fd):
            raise in_use(target, hint=f"when no other run is: rm {shlex.quote(str(partial))}")
        if is_at(partial, fd):
            partial.unlink()
    except BlockingIOError as error:
        raise in_use(target) from error
    finally:
        os.close(fd)


@contextmanager
def taken_over(target: Path) -> Iterator[Path | None]:
    """Lock the partial file that a killed run left for ``target``; remove it after the block.

    Yield None if there is none, if a run has it, or if the file system has no locks. When the block
    raises, the file stays.
    """
    partial = partial_beside(target)
    try:
        fd = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        is_ours = _is_free(fd)
        yield partial if is_ours else None
        if is_ours:
            remove(partial, fd)
    finally:
        os.close(fd)


def _is_free(fd: int) -> bool:
    try:
        return _lock(fd)
    except OSError:
        return False


def remove_second_name(target: Path) -> None:
    """Remove the partial file of a run that was killed after its file was linked to ``target``."""
    partial = partial_beside(target)
    with suppress(OSError):
        if os.path.samestat(partial.lstat(), target.stat()):
            _remove_abandoned(partial, target)


def _lock(fd: int) -> bool:
    """Lock a file; False when its file system has no locks.

    Raises:
        BlockingIOError: another run holds the lock.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def is_at(path: Path, fd: int) -> bool:
    """Return whether the open file is the one at ``path``, not another of that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def remove(path: Path, fd: int) -> None:
    """Remove the open file, if it is still at ``path``."""
    with suppress(OSError):
        if is_at(path, fd):
            path.unlink()


def in_use(
    target: Path, hint: str = "wait until it has finished, or name another output with -o"
) -> OutputError:
    """Return the error that leaves a file to the run that has it."""
    return OutputError("another run is writing it", path=target, hint=hint)

"""The partial file of an output: hidden beside it, new, locked by this run.

Its name is always the same, so that the next run for the same output finds the file of a killed
run. The lock ends with the process that holds it, and so tells a running process from a killed one.
Another run may do the same between any two steps, so a file is compared with the open one before it
is removed. What is removed was made by this user, under a name that nobody else chooses, and no
running process has it locked; everything else is left where it is.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ckptool.errors import OutputError

try:
    import fcntl

    TO_LOCK = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
except ImportError:  # Windows, where check_system refuses
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".ckptool.partial"  # .NAME.ckptool.partial: no name that a user would choose
MAX_NAME = 255  # bytes
ATTEMPTS = 5  # at creating the file while other runs remove it
NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK})


def check_system(target: Path) -> None:
    """Refuse to write where the system has no locks.

    Raises:
        OutputError: this is Windows.
    """
    if fcntl is None:
        raise OutputError(
            "ckptool writes no checkpoints on Windows, and no files of reports: it has neither "
            "these file locks nor renames of open files",
            path=target,
            hint="run this command in WSL; inspect, verify and diff work here, with > FILE",
        )


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
    """Remove the partial file of a killed run."""
    try:
        # For writing, without which NFS gives no exclusive lock.
        fd = os.open(partial, TO_LOCK)
    except FileNotFoundError:
        return
    try:
        if not _lock(fd):
            raise in_use(target, hint=f"when no other run is: rm {shlex.quote(str(partial))}")
        if not _is_of_this_user(fd):
            raise OutputError(
                f"{partial.name} is in the way, and no run of this user has made it",
                path=target,
                hint="name another file, or move that one away",
            )
        if is_at(partial, fd):
            partial.unlink()
    except BlockingIOError as error:
        raise in_use(target) from error
    finally:
        os.close(fd)


def remove_left_over(target: Path, inputs: Collection[Path]) -> None:
    """Remove the partial file that a killed run left for ``target``, if it is surely one.

    It stays if it is one of the inputs, if a run has it, if another user has made it, and if the
    file system has no locks.
    """
    partial = partial_beside(target)
    if fcntl is None or any(is_same_file(path, partial) for path in inputs):
        return
    with suppress(OSError):
        fd = os.open(partial, TO_LOCK)
        try:
            if _lock(fd) and _is_of_this_user(fd):
                remove(partial, fd)
        finally:
            os.close(fd)


def _is_of_this_user(fd: int) -> bool:
    """Return whether a run of this user can have made the file, or another name keeps its bytes."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and (status.st_uid == os.geteuid() or status.st_nlink > 1)


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


def is_same_file(one: Path, other: Path) -> bool:
    """Return whether two names exist and are of one file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


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
    target: Path, hint: str = "wait until it has finished, or name another file"
) -> OutputError:
    """Return the error that leaves a file to the run that has it."""
    return OutputError("another run is writing it", path=target, hint=hint)

"""Output is whole or absent: a hidden neighbour, fsync, rename, fsync of the folder.

Until the rename nobody sees the new file; after it nobody sees a part of one. A run that is killed
leaves at most the partial file, which the next run for the same output recognises as abandoned
(nobody holds its lock) and replaces. A file that is replaced keeps its mode and its owner, and on
request its content under a second name, which costs no copy: a hard link made before the rename.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptool.errors import DamagedError, OutputError
from ckptool.formats.base import SourceFile, TensorReader
from ckptool.numerics import Progress, no_progress
from ckptool.tree import Blob, ByteSpan
from ckptool.writers.copying import Pace, clone, copy_bytes

PARTIAL = ".ckptool.partial"  # .NAME.ckptool.partial: no name that a user would choose
MAX_NAME = 255  # bytes
ANY_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
ATTEMPTS = 5  # at creating the file while other runs remove it
NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK})


class PartialFile:
    """A file that is being written, from its beginning to its end."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        self.position = 0  # bytes written
        self._pace = Pace()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self.position += self._put(data, self.position)
        self._pace.after(self.fd, self.position)

    def patch(self, data: bytes | memoryview, offset: int) -> None:
        """Overwrite bytes that were written before."""
        self._put(data, offset)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes that were written before."""
        parts = []
        while nbytes and (part := os.pread(self.fd, min(nbytes, 1 << 30), offset)):
            parts.append(part)
            offset, nbytes = offset + len(part), nbytes - len(part)
        return b"".join(parts)

    def copy(self, reader: TensorReader, span: ByteSpan, progress: Progress = no_progress) -> None:
        """Append the bytes of a span."""
        self._copy(reader, span, self.position, progress, self._pace)
        self.position += span.nbytes

    def place(
        self, reader: TensorReader, span: ByteSpan, offset: int, progress: Progress = no_progress
    ) -> None:
        """Copy the bytes of a span over what stands at ``offset``."""
        self._copy(reader, span, offset, progress, None)

    def _copy(
        self,
        reader: TensorReader,
        span: ByteSpan,
        offset: int,
        progress: Progress,
        pace: Pace | None,
    ) -> None:
        if isinstance(span.source, Blob):
            self._put(reader.read(span), offset)
            return
        source = reader.file(span.source).fd
        copy_bytes(
            source,
            self.fd,
            span.nbytes,
            start=span.offset,
            at=offset,
            progress=progress,
            pace=pace,
        )

    def copy_file(self, file: SourceFile, progress: Progress = no_progress) -> None:
        """The whole of another file; its blocks are shared where the file system can."""
        if clone(file.fd, self.fd):
            progress(file.size)
            self.position = file.size
        else:
            self.need(file.size)
            self.copy_from(file, ByteSpan(file.path, 0, file.size), progress)

    def copy_from(self, file: SourceFile, span: ByteSpan, progress: Progress = no_progress) -> None:
        """Append bytes of another file."""
        copy_bytes(
            file.fd, self.fd, span.nbytes,
            start=span.offset, at=self.position, progress=progress, pace=self._pace,
        )  # fmt: skip
        self.position += span.nbytes

    def need(self, nbytes: int) -> None:
        """Refuse before anything is written what cannot fit.

        Raises:
            OutputError: the file system has less room than ``nbytes`` bytes.
        """
        free = shutil.disk_usage(self.path.parent).free
        if nbytes > free:
            raise OutputError(
                f"{nbytes:,} bytes are needed, {free:,} are free there; nothing was written",
                path=self.path.parent,
                hint="make room, or name a file on another disk with -o",
            )

    def cut(self, position: int) -> None:
        """Drop what was written from ``position`` on."""
        os.ftruncate(self.fd, position)
        self.position = position

    def sync(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self.fd)

    def _put(self, data: bytes | memoryview, offset: int) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], offset + done)
        return done


def check_output(path: Path, inputs: Iterable[Path], *, force: bool) -> Path:
    """The path to write to (through symbolic links), if it may be written.

    Raises:
        OutputError: no such folder, not a regular file, one of the inputs, or there already.
    """
    target = Path(os.path.realpath(path))
    try:
        has_folder = target.parent.is_dir()
        status = target.stat() if target.exists() else None
    except OSError as error:
        raise OutputError(_reason(error), path=path) from error
    if not has_folder:
        raise OutputError("the folder does not exist", path=path, hint=f"mkdir -p '{path.parent}'")
    if status is None:
        return target
    if stat.S_ISDIR(status.st_mode):
        raise OutputError("a directory", path=path, hint="name a file: -o DIRECTORY/NAME")
    if not stat.S_ISREG(status.st_mode):
        raise OutputError("not a regular file", path=path, hint="name a file with -o")
    if any(source.exists() and target.samefile(source) for source in inputs):
        raise OutputError(
            "the output is the input itself", path=path, hint="name another file with -o"
        )
    if not force:
        raise OutputError(
            "the file exists", path=path, hint="--force replaces it, -o names another"
        )
    return target


def check_in_place(path: Path, backup: Path | None, *, force: bool) -> Path:
    """The file to replace (behind symbolic links), if it may be replaced by a rename.

    Raises:
        OutputError: read-only, or with other names that would keep the old content, without
            ``force``; or the backup's name is taken.
    """
    target = Path(os.path.realpath(path))
    status = target.stat()
    if status.st_nlink > 1 and not force and not _is_backup(backup, status):
        raise OutputError(
            f"the file has {status.st_nlink - 1} other names (hard links), which would keep the "
            "raw weights",
            path=path,
            hint="-o writes another file; --force replaces this name alone",
        )
    if not (status.st_mode & ANY_WRITES and os.access(target, os.W_OK)) and not force:
        raise OutputError(
            "the file is read-only", path=path, hint="-o writes another file, --force replaces"
        )
    if backup is not None and os.path.lexists(backup) and not _is_backup(backup, status):
        raise OutputError(
            "the backup is there already, of another file", path=backup, hint="move it away first"
        )
    return target


def _is_backup(backup: Path | None, status: os.stat_result) -> bool:
    """Whether the backup is a second name of the file: left by a run that was killed."""
    try:
        return backup is not None and os.path.samestat(backup.lstat(), status)
    except OSError:
        return False


@contextmanager
def whole_file(target: Path, *, force: bool, backup: Path | None = None) -> Iterator[PartialFile]:
    """A file that stands at ``target`` when the block ends well, and nowhere when it does not.

    ``backup`` is a second name for the file that is replaced.

    Raises:
        OutputError: it cannot be created, the disk is full, or it appeared meanwhile.
    """
    partial = _partial_beside(target)
    try:
        fd = _create(partial, target)
    except OSError as error:
        raise OutputError(_reason(error), path=target) from error
    try:
        yield PartialFile(partial, fd)
        _take_after(fd, target)
        os.fsync(fd)
        _publish(partial, fd, target, force=force, backup=backup)
    except OSError as error:
        _discard(partial, fd)
        raise OutputError(_reason(error), path=target) from error
    except BaseException:
        _discard(partial, fd)
        raise
    finally:
        os.close(fd)
    _sync_folder(target.parent)


def _partial_beside(target: Path) -> Path:
    """A hidden name that only ckptool uses, cut to what a folder can hold."""
    room = MAX_NAME - len(f".{PARTIAL}")
    name = os.fsencode(target.name)[:room].decode(errors="ignore")
    return target.with_name(f".{name}{PARTIAL}")


def _create(partial: Path, target: Path) -> int:
    """A new file of our own; one that a killed run left behind is replaced."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(ATTEMPTS):
        try:
            fd = os.open(partial, flags, 0o600)
        except FileExistsError:
            _remove_abandoned(partial, target)
            continue
        try:
            _lock(fd)
            if _is_at(partial, fd):
                return fd
        except BlockingIOError:  # taken for abandoned before we had locked it
            pass
        except BaseException:
            _discard(partial, fd)
            os.close(fd)
            raise
        os.close(fd)
    raise _in_use(target)


def _remove_abandoned(partial: Path, target: Path) -> None:
    """Remove what a killed run left behind.

    Raises:
        OutputError: a run holds its lock, or there are no locks that could tell.
    """
    try:
        # For writing, without which NFS gives no exclusive lock.
        fd = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not _lock(fd):
            raise _in_use(target, hint=f"when no other run is: rm {shlex.quote(str(partial))}")
        if _is_at(partial, fd):
            partial.unlink()
    except BlockingIOError as error:
        raise _in_use(target) from error
    finally:
        os.close(fd)


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


def _is_at(path: Path, fd: int) -> bool:
    """Whether the open file is the one that stands at ``path``, not another of that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _in_use(target: Path, hint: str | None = None) -> OutputError:
    return OutputError("another run is writing it", path=target, hint=hint)


def _take_after(fd: int, target: Path) -> None:
    """The owner and mode of the file that is replaced; else the mode that the umask leaves."""
    try:
        status = target.stat()
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(fd, 0o666 & ~umask)
        return
    with suppress(PermissionError):  # only root gives files away; the mode is set all the same
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def _publish(partial: Path, fd: int, target: Path, *, force: bool, backup: Path | None) -> None:
    if not _is_at(partial, fd):
        raise _in_use(target)
    if force:
        with _second_name(target, backup):
            partial.rename(target)
        return
    try:
        os.link(partial, target)  # unlike a rename, fails when something is there
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if target.exists():
            raise FileExistsError(errno.EEXIST, "the file exists") from None
        partial.rename(target)
        return
    partial.unlink()


@contextmanager
def _second_name(target: Path, backup: Path | None) -> Iterator[None]:
    """The file under two names while the block runs; under its own alone when that fails."""
    if backup is None:
        yield
        return
    if not _is_backup(backup, target.stat()):
        try:
            os.link(target, backup)
        except FileExistsError:
            raise
        except OSError as error:
            raise OutputError(
                f"no backup can be made there: {_reason(error)}",
                path=backup,
                hint="-o writes another file, and this one stays as it is",
            ) from error
    try:
        yield
    except BaseException:
        backup.unlink()
        raise


def _discard(partial: Path, fd: int) -> None:
    with suppress(OSError):
        if _is_at(partial, fd):
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot; the file itself is safe
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_REASONS = {
    errno.ENOSPC: "no space left on the device; nothing was written",
    errno.EDQUOT: "the disk quota is exhausted; nothing was written",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file would be larger than the file system or a limit allows",
}


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def expect(condition: bool, message: str, path: Path) -> None:  # noqa: FBT001
    """A check of what was just written.

    Raises:
        DamagedError: it does not hold; the file is not put in place.
    """
    if not condition:
        raise DamagedError(f"what was written does not read back: {message}", path=path)

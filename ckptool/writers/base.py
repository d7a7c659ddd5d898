"""Output is whole or absent: a hidden neighbour, fsync, rename, fsync of the folder.

Until the rename nobody sees the new file; after it nobody sees a part of one. A run that is killed
leaves at most the partial file, which the next run for the same output replaces; one that is ended
by a signal that can be caught leaves nothing. A file that is replaced keeps its mode and its owner,
and on request its content under a second name, which costs no copy: a hard link made before the
rename.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptool.errors import CkptError, DamagedError, OutputError
from ckptool.formats.base import SourceFile, TensorReader
from ckptool.interrupts import held, undone_at_end
from ckptool.numerics import Progress, no_progress
from ckptool.tree import Blob, ByteSpan
from ckptool.writers.attributes import take_after
from ckptool.writers.copying import STEP, Pace, Ways, clone, copy_bytes
from ckptool.writers.partial import (
    create,
    in_use,
    is_at,
    partial_beside,
    remove,
    remove_second_name,
)

ANY_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH

REASONS = {
    errno.ENOSPC: "no space left on the device; nothing was written",
    errno.EDQUOT: "the disk quota is exhausted; nothing was written",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file would be larger than the file system or a limit allows",
}

MORE_ROOM = "make room, or name a file on another disk with -o"
HINTS = {
    errno.ENOSPC: MORE_ROOM,
    errno.EDQUOT: MORE_ROOM,
    errno.EFBIG: "ulimit -f shows the limit; --max-shard-size writes several files",
}


def _reason(error: OSError) -> str:
    return REASONS.get(error.errno or 0) or error.strerror or str(error)


class PartialFile:
    """A file that is being written, from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1  # until it is there
        self.position = 0  # where the next bytes are appended
        self._reserved = 0  # offset up to which there is room
        self._pace, self._ways = Pace(), Ways()

    def close(self) -> None:
        """Give the file up; what still has its name of a partial file goes. Harmless when twice."""
        if self.fd >= 0:
            remove(self.path, self.fd)
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # fsync has told all that could be told here
                os.close(fd)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self.position += self._put(data, self.position)
        self._pace.after(self.fd, self.position)

    def skip(self, nbytes: int) -> int:
        """Leave room for what is written later by :meth:`patch`, and say where it begins."""
        self.position += nbytes
        return self.position - nbytes

    def make_way(self, offset: int, end: int) -> None:
        """What lies before ``offset`` is on its way, and values up to ``end`` follow."""
        self._pace.after(self.fd, offset)
        if offset >= self._reserved:
            nbytes = min(STEP, end - offset)
            self._pace.before(self.fd, offset, nbytes)
            self._reserved = offset + nbytes

    def patch(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write bytes at a place before the end: over others, or where :meth:`skip` left room."""
        self._put(data, offset)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes that were written before."""
        parts = []
        while nbytes and (part := os.pread(self.fd, min(nbytes, 1 << 30), offset)):
            parts.append(part)
            offset, nbytes = offset + len(part), nbytes - len(part)
        return b"".join(parts)

    def place(
        self, reader: TensorReader, span: ByteSpan, offset: int, progress: Progress = no_progress
    ) -> None:
        """Copy the bytes of a span over what stands at ``offset``."""
        if isinstance(span.source, Blob):
            self._put(reader.read(span), offset)
            return
        self._copy_file(reader.file(span.source), span, offset, progress, None)

    def _copy_file(
        self, file: SourceFile, span: ByteSpan, offset: int, progress: Progress, pace: Pace | None
    ) -> None:
        try:
            copy_bytes(
                file.fd, self.fd, span.nbytes,
                start=span.offset, at=offset, progress=progress, pace=pace, ways=self._ways,
            )  # fmt: skip
        except CkptError as error:
            raise error.at(file.path) from error.__cause__

    def copy_file(
        self,
        file: SourceFile,
        progress: Progress = no_progress,
        later: Sequence[ByteSpan] = (),
    ) -> None:
        """The whole of another file; its blocks are shared where the file system can.

        What is written ``later``, whole, need not be copied before.
        """
        if clone(file.fd, self.fd):
            progress(file.size - sum(span.nbytes for span in later))
            self.position = file.size
        else:
            self.need(file.size)
            self.copy_from(file, ByteSpan(file.path, 0, file.size), progress, later)

    def copy_from(
        self,
        file: SourceFile,
        span: ByteSpan,
        progress: Progress = no_progress,
        later: Sequence[ByteSpan] = (),
    ) -> None:
        """Append bytes of another file, with room for what is written ``later``."""
        for run in _between(span, later):
            at = self.position + run.offset - span.offset
            self._copy_file(file, run, at, progress, self._pace)
        self.position += span.nbytes
        if later:  # what is written last may stand at the end
            os.ftruncate(self.fd, self.position)

    def need(self, nbytes: int) -> None:
        """Refuse before anything is written what cannot fit.

        Raises:
            OutputError: the file system has less room than ``nbytes`` bytes.
        """
        free = _free_bytes(self.path.parent)
        if free is not None and nbytes > free:
            raise OutputError(
                f"{nbytes:,} bytes are needed, {free:,} are free there; nothing was written",
                path=self.path.parent,
                hint=MORE_ROOM,
            )

    def cut(self, position: int) -> None:
        """Drop what was written from ``position`` on."""
        os.ftruncate(self.fd, position)
        self.position = position

    def sync(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self.fd)

    def _put(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], offset + done)
        return done


def _between(span: ByteSpan, later: Sequence[ByteSpan]) -> Iterator[ByteSpan]:
    """What of a span is not in the others, which lie in it, in order and apart."""
    at, end = span.offset, span.offset + span.nbytes
    for other in (*later, ByteSpan(span.source, end, 0)):
        if other.offset > at:
            yield ByteSpan(span.source, at, other.offset - at)
        at = other.offset + other.nbytes


def _free_bytes(folder: Path) -> int | None:
    """What a user may still write there; None when the file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def check_output(path: Path, inputs: Collection[Path], *, force: bool) -> Path:
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
    if any(_is_same_file(source, partial_beside(target)) for source in inputs):
        raise OutputError(
            "the input has the name of the file in which this output would be prepared",
            path=path,
            hint="name another file with -o",
        )
    if status is None:
        return target
    if stat.S_ISDIR(status.st_mode):
        raise OutputError("a directory", path=path, hint="name a file: -o DIRECTORY/NAME")
    if not stat.S_ISREG(status.st_mode):
        raise OutputError("not a regular file", path=path, hint="name a file with -o")
    if any(_is_same_file(source, target) for source in inputs):
        raise OutputError(
            "the output is the input itself", path=path, hint="name another file with -o"
        )
    if not force:
        remove_second_name(target)
        raise OutputError(
            "the file exists", path=path, hint="--force replaces it, -o names another"
        )
    return target


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether two names are there and of one file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def check_in_place(path: Path, backup: Path | None, *, force: bool) -> Path:
    """The file to replace (behind symbolic links), if it may be replaced by a rename.

    Raises:
        OutputError: read-only, or with other names that would keep the old content, without
            ``force``; or the backup's name is taken.
    """
    target = Path(os.path.realpath(path))
    remove_second_name(target)
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
    if backup is not None:
        _check_backup(backup, status)
    return target


def _check_backup(backup: Path, status: os.stat_result) -> None:
    """Refuse early what a second name cannot be: taken, too long, on another file system."""
    try:
        is_taken = not os.path.samestat(backup.lstat(), status)
    except FileNotFoundError:
        is_taken = False
    except OSError as error:
        raise OutputError(f"no backup can be made there: {_reason(error)}", path=backup) from error
    if is_taken:
        raise OutputError(
            "the backup is there already, of another file", path=backup, hint="move it away first"
        )
    if backup.parent.stat().st_dev != status.st_dev:
        raise OutputError(
            "no backup can be made there: the file itself is on another file system",
            path=backup,
            hint="name the file and not the link to it: readlink -f shows it",
        )


def _is_backup(backup: Path | None, status: os.stat_result) -> bool:
    """Whether the backup is a second name of the file: left by a run that was killed."""
    try:
        return backup is not None and os.path.samestat(backup.lstat(), status)
    except OSError:
        return False


@contextmanager
def whole_file(
    target: Path,
    *,
    force: bool,
    backup: Path | None = None,
    last_look: Callable[[], object] = lambda: None,
) -> Iterator[PartialFile]:
    """A file that stands at ``target`` when the block ends well, and nowhere when it does not.

    ``backup`` is a second name for the file that is replaced. ``last_look`` is called when the file
    is safe on the disk, and refuses by raising: a moment later the old one is replaced.

    Raises:
        OutputError: it cannot be created, the disk is full, or it appeared meanwhile.
    """
    file = PartialFile(partial_beside(target))
    with _told_as_output_errors(target), undone_at_end(file.close):
        with held():
            file.fd = create(file.path, target)
        yield file
        take_after(file.fd, target)
        os.fsync(file.fd)
        last_look()
        with held():
            _publish(file, target, force=force, backup=backup)
    sync_folder(target.parent)


@contextmanager
def scratch_file(place: Path, target: Path) -> Iterator[PartialFile]:
    """A file on its way to ``place`` that never gets there: it goes when the block ends.

    What is really made is ``target``, which errors name.

    Of a run that is killed, the next one finds it: :func:`~ckptool.writers.partial.taken_over`.

    Raises:
        OutputError: it cannot be created, or another run has it.
    """
    file = PartialFile(partial_beside(place))
    with _told_as_output_errors(target), undone_at_end(file.close):
        with held():
            file.fd = create(file.path, target)
        try:
            yield file
        finally:
            file.close()


@contextmanager
def _told_as_output_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = HINTS.get(error.errno or 0)
        raise OutputError(_reason(error), path=target, hint=hint) from error


def _publish(file: PartialFile, target: Path, *, force: bool, backup: Path | None) -> None:
    """Give the file its name; the one that it has goes when it is closed."""
    if not is_at(file.path, file.fd):
        raise in_use(target)
    if force:
        with _second_name(target, backup):
            file.path.rename(target)
        return
    try:
        os.link(file.path, target)  # unlike a rename, fails when something is there
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if target.exists():
            raise FileExistsError(errno.EEXIST, "the file exists") from None
        file.path.rename(target)


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


def sync_folder(folder: Path) -> None:
    """Bring what a folder lists to the disk, where its file system can."""
    with suppress(OSError):  # some file systems cannot; the file itself is safe
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def expect(condition: bool, message: str, path: Path) -> None:  # noqa: FBT001
    """A check of what was just written.

    Raises:
        DamagedError: it does not hold; the file is not put in place.
    """
    if not condition:
        raise DamagedError(f"what was written does not read back: {message}", path=path)

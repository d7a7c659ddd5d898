"""The path and the format of an output, and checks that it may be written there."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from ckptool.errors import SYSTEM_HINTS, OutputError, UsageError
from ckptool.formats.dcp import DcpFolder
from ckptool.formats.safetensors_file import SafetensorsFile
from ckptool.formats.torch_zip import TorchZip
from ckptool.sources.urls import SCHEMES, RemotePath
from ckptool.writers.files.partial import (
    check_system,
    is_same_file,
    partial_beside,
    remove_second_name,
)

DEFAULT_SUFFIX = ".ema.safetensors"

# The format that each suffix of an output chooses.
FORMAT_OF_SUFFIX: Mapping[str, str] = {
    suffix: known.name
    for known in (SafetensorsFile, TorchZip, DcpFolder)
    for suffix in known.suffixes
}


def output_path(source: Path, output: str | Path | None, name: str | None = None) -> Path:
    """Return the file to write: beside the source, as named, or inside the directory that is named.

    ``name`` is that of the file in a directory, by default the same as beside the source.

    Raises:
        OutputError: it is a URL.
    """
    if output is not None:
        _refuse_url(output)
        if is_folder_name(output):
            return Path(output)
    beside = _beside(source)
    return beside if output is None else in_folder(output, name or beside.name)


def is_folder_name(output: str | Path) -> bool:
    """Return whether the suffix chooses a format that is a directory."""
    return Path(output).suffix.lower() in DcpFolder.suffixes


def in_folder(output: str | Path, name: str) -> Path:
    """Return ``output``, or if that is a directory, the file ``name`` in it.

    ``output`` is a directory if one exists there, or if it ends with a slash.

    Raises:
        OutputError: it is a URL.
    """
    _refuse_url(output)
    is_folder = str(output).endswith(("/", os.sep)) or os.path.isdir(output)  # noqa: PTH112
    return Path(output) / name if is_folder else Path(output)


def _beside(source: Path) -> Path:
    """Return the path beside the checkpoint; keep a directory's name, also of ``.`` and ``..``.

    What comes from a URL is written to the working directory.
    """
    if isinstance(source, RemotePath):
        return Path(source.stem + DEFAULT_SUFFIX)
    with suppress(OSError):  # opening the checkpoint reports the error
        if source.is_dir():
            folder = source.resolve()
            return folder.parent / (folder.name + DEFAULT_SUFFIX)
    return source.parent / (source.stem + DEFAULT_SUFFIX)


def format_of(output: Path) -> str:
    """Return the format that the suffix chooses.

    Raises:
        UsageError: it chooses none.
        OutputError: it is a URL.
    """
    _refuse_url(output)
    kind = FORMAT_OF_SUFFIX.get(output.suffix.lower())
    if kind is None:
        known = " ".join(FORMAT_OF_SUFFIX)
        raise UsageError(
            f"no output format has the suffix {output.suffix!r}"
            if output.suffix
            else "no output format: the name has no suffix that chooses one",
            path=output,
            hint=f"-o {output.name}.safetensors, or one of: {known}; in a directory that exists "
            "ckptool chooses the name",
        )
    return kind


# --------------------------------------------------------------------------- may it be written

ANY_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH

REASONS = {
    errno.ENOSPC: "no space left on the device; nothing was written",
    errno.EDQUOT: "the disk quota is exhausted; nothing was written",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file would be larger than the file system or a limit allows",
}


def reason_of(error: OSError) -> str:
    """Return the reason why a file cannot be written."""
    return REASONS.get(error.errno or 0) or error.strerror or str(error)


def check_output(path: Path, inputs: Collection[Path], *, force: bool) -> Path:
    """Return the path to write to (through symbolic links), if it may be written.

    Raises:
        OutputError: there is no such directory, or the path is no regular file, is one of the
            inputs, or exists already.
    """
    check_system(path)
    _refuse_url(path)
    target = Path(os.path.realpath(path))
    try:
        has_folder = target.parent.is_dir()
        status = target.stat() if target.exists() else None
    except OSError as error:
        raise OutputError(
            reason_of(error), path=path, hint=SYSTEM_HINTS.get(error.errno or 0)
        ) from error
    if not has_folder:
        hint = f"mkdir -p {shlex.quote(str(path.parent))}"
        raise OutputError("the directory does not exist", path=path, hint=hint)
    if any(is_same_file(source, partial_beside(target)) for source in inputs):
        raise OutputError(
            "the input has the name of the file in which this output would be prepared",
            path=path,
            hint="name another file",
        )
    if status is None:
        return target
    if stat.S_ISDIR(status.st_mode):
        raise OutputError("a directory", path=path, hint="name a file in it: DIRECTORY/NAME")
    if not stat.S_ISREG(status.st_mode):
        raise OutputError("not a regular file", path=path, hint="name a file")
    if any(is_same_file(source, target) for source in inputs):
        raise OutputError("the output is the input itself", path=path, hint="name another file")
    if not force:
        remove_second_name(target)
        raise OutputError(
            "the file exists", path=path, hint="--force replaces it; or name another file"
        )
    return target


def check_folder(folder: Path) -> bool:
    """Return whether the directory of an output is there; otherwise it can be made.

    Raises:
        OutputError: something else is there, or its own directory does not exist.
    """
    if folder.is_dir():
        return True
    if os.path.lexists(folder):
        raise OutputError("not a directory, which this format is", path=folder, hint="name another")
    check_output(folder, (), force=False)
    return False


THIS_MACHINE = "outputs are files of this machine, and this is a URL"


def _refuse_url(output: str | Path) -> None:
    """Refuse a URL, as a text or as a path of this machine, which has lost a slash."""
    scheme, colon, rest = str(output).partition(":")
    if scheme.lower() in SCHEMES and rest.startswith("/") and not Path(scheme + colon).exists():
        url = RemotePath(f"{scheme}://{rest.lstrip('/')}")
        raise OutputError(THIS_MACHINE, path=url, hint="write a file here and upload it")


def check_in_place(path: Path, backup: Path | None, *, force: bool) -> Path:
    """Return the file to replace (behind symbolic links), if it may be replaced by a rename.

    Raises:
        OutputError: without ``force``, the file is read-only or has other names that would keep the
            old content; or the backup's name is taken.
    """
    check_system(path)
    if isinstance(path, RemotePath):
        raise OutputError(THIS_MACHINE, path=path, hint="-o writes another file, here")
    target = Path(os.path.realpath(path))
    remove_second_name(target)
    status = target.stat()
    if status.st_nlink > 1 and not force and not is_backup(backup, status):
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
    """Refuse a backup that cannot be made: a name taken, too long, or on another file system."""
    try:
        is_taken = not os.path.samestat(backup.lstat(), status)
    except FileNotFoundError:
        is_taken = False
    except OSError as error:
        raise OutputError(
            f"no backup can be made there: {reason_of(error)}",
            path=backup,
            hint=SYSTEM_HINTS.get(error.errno or 0),
        ) from error
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


def is_backup(backup: Path | None, status: os.stat_result) -> bool:
    """Return whether the backup is a second name of the file, left by a run that was killed."""
    try:
        return backup is not None and os.path.samestat(backup.lstat(), status)
    except OSError:
        return False

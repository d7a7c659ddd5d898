"""Owner, mode and extended attributes, taken over from the file that is replaced."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

ATTRIBUTES = ("user.", "system.posix_acl_access")


def take_after(fd: int, target: Path) -> None:
    """Copy owner, mode and attributes of the file that is replaced.

    A new file gets the mode that the umask leaves. Changes that the file system or our rights do
    not allow are left undone, since the values matter more.
    """
    try:
        status = target.stat()
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        _set_mode(fd, 0o666 & ~umask)
        return
    for user, group in ((-1, status.st_gid), (status.st_uid, -1)):  # only root gives files away
        with suppress(OSError):
            os.fchown(fd, user, group)
    _set_mode(fd, stat.S_IMODE(status.st_mode))
    _copy_attributes(target, fd)


def _set_mode(fd: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:  # FAT has one mode for all files
        with suppress(OSError):
            os.fchmod(fd, mode)


def _copy_attributes(target: Path, fd: int) -> None:
    """Copy the user's extended attributes and the access list, where the system has them."""
    with suppress(OSError, AttributeError):
        for name in os.listxattr(target):
            if name.startswith(ATTRIBUTES):
                os.setxattr(fd, name, os.getxattr(target, name))

"""Whose a file is and who may do what with it: taken over from the file that is replaced."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

ATTRIBUTES = ("user.", "system.posix_acl_access")


def take_after(fd: int, target: Path) -> None:
    """Owner, mode and attributes of the file that is replaced; else the mode that the umask leaves.

    What the file system or our rights do not allow stays undone: the values are what matters.
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
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:  # FAT has one for all files
        with suppress(OSError):
            os.fchmod(fd, mode)


def _copy_attributes(target: Path, fd: int) -> None:
    """The user's extended attributes and the access list, where the system has such."""
    with suppress(OSError, AttributeError):
        for name in os.listxattr(target):
            if name.startswith(ATTRIBUTES):
                os.setxattr(fd, name, os.getxattr(target, name))

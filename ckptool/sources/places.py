"""Places of files: paths of this machine, and URLs.

Nothing but a text that begins like a URL becomes one, and only then is the package ``remote``
imported, which knows the network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ckptool.errors import UsageError
from ckptool.process.allowance import ALLOWANCE
from ckptool.sources.base import Source
from ckptool.sources.local import LocalFile
from ckptool.sources.urls import SCHEMES, RemotePath, scheme_of, shown

if TYPE_CHECKING:
    from ckptool.sources.remote.stores import Store


def _store_of(path: RemotePath) -> Store:
    from ckptool.sources.remote.schemes import store_of  # noqa: PLC0415 - network

    return store_of(path)


RemotePath.find_store = staticmethod(_store_of)


def as_path(text: str | Path) -> Path:
    """Return the path that a text names: a URL only if no file has that name.

    Raises:
        UsageError: it is a URL of a scheme that ckptool does not know.
    """
    if isinstance(text, Path):
        return text
    scheme = scheme_of(text)
    if not scheme or os.path.lexists(text):
        return Path(text)
    if scheme.lower() not in SCHEMES:
        raise UsageError(
            f"{shown(text)}: ckptool reads no URLs that begin with {scheme}://",
            hint="download the file and name it; URLs that it reads begin with "
            + ", ".join(f"{scheme}://" for scheme in SCHEMES),
        )
    return RemotePath(text)


def is_folder(path: Path) -> bool:
    """Return whether a path is a directory; never raise an error of this machine."""
    if isinstance(path, RemotePath):
        return path.is_dir()
    return os.path.isdir(path)  # noqa: PTH112 - unlike Path.is_dir, it raises nothing


def is_file(path: Path) -> bool:
    """Return whether a path is a file; never raise an error, as for names that are too long."""
    if isinstance(path, RemotePath):
        return path.is_file()
    return os.path.isfile(path)  # noqa: PTH113 - unlike Path.is_file, it raises nothing


def entries(folder: Path) -> list[Path]:
    """Return the files and directories in a directory, sorted; none if it cannot be listed."""
    try:
        found = list(folder.iterdir())
    except OSError:
        return []
    ALLOWANCE.grant_names(folder, len(found))
    return sorted(found)


def files_in(folder: Path) -> list[Path]:
    """Return the files in a directory, sorted; none if it cannot be listed."""
    return [path for path in entries(folder) if path.is_file()]


def known_size(path: Path) -> int:
    """Return the bytes of a file; a server is not asked, so that they may be unknown there: 0.

    Raises:
        OSError: there is no such file here.
    """
    return int(path.store.known_size(path)) if isinstance(path, RemotePath) else path.stat().st_size


def open_file(path: Path) -> Source:
    """Open a file, here or behind a URL.

    Raises:
        UnreadableError: there is no file that can be read.
    """
    return path.store.open(path) if isinstance(path, RemotePath) else LocalFile(path)

"""Stores that list their files: directories are what the names of files have in common.

A listing is asked for once for each directory, and kept. A name with the suffix of a file is opened
before its directory is listed: mostly it is one, and the first bytes are needed anyway.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from ckptool.errors import UnreadableError
from ckptool.records import NamedTuple
from ckptool.sources.base import Source
from ckptool.sources.remote.base import NotThereError, TransferError
from ckptool.sources.remote.stores import Store
from ckptool.sources.urls import RemotePath, Status

FILE_SUFFIXES = frozenset({
    ".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".pkl", ".json", ".tar", ".nemo", ".zip",
    ".distcp",
})  # fmt: skip
MAX_ENTRIES = 100_000  # of a directory


class Entry(NamedTuple):
    """A file, or a directory, which has no size."""

    size: int | None  # bytes
    modified: float = 0.0  # seconds since 1970; 0: not known


class ListingStore(Store):
    """A store that lists directories."""

    def __init__(self) -> None:
        self._listed: dict[RemotePath, Mapping[str, Entry]] = {}
        self._opened: dict[RemotePath, Source] = {}  # for the reader that comes next
        self._files: set[RemotePath] = set()  # known to be no directories

    @abstractmethod
    def listed(self, folder: RemotePath) -> Mapping[str, Entry]:
        """Return what lies directly in a directory, by name; nothing if it does not exist.

        Raises:
            TransferError: the store does not answer.
        """

    def entries(self, folder: RemotePath) -> Mapping[str, Entry]:
        """Return what lies directly in a directory, asked for once.

        Raises:
            OSError: the store does not answer.
        """
        if folder not in self._listed:
            self._listed[folder] = self.listed(folder)
        return self._listed[folder]

    def is_folder(self, path: RemotePath) -> bool:
        """Return whether files lie below a path.

        Raises:
            UnreadableError: the store does not answer.
        """
        known = self._listed.get(path.parent)
        if known is not None:
            entry = known.get(path.name)
            return entry is not None and entry.size is None
        if path.suffix.lower() in FILE_SUFFIXES and self._opens(path):
            return False
        try:
            return bool(self.entries(path))
        except TransferError as error:
            raise UnreadableError(error.message, path=path, hint=error.hint) from error

    def _opens(self, path: RemotePath) -> bool:
        """Open a file for the reader that comes next; return whether it is there."""
        if path in self._files:
            return True
        try:
            self._opened[path] = super().open(path)
        except UnreadableError as error:
            if isinstance(error.__cause__, NotThereError):
                return False
            raise
        self._files.add(path)
        return True

    def open(self, path: RemotePath) -> Source:
        """Return the bytes of a file, which may have been opened already."""
        opened = self._opened.pop(path, None)
        return super().open(path) if opened is None else opened

    def names_in(self, path: RemotePath) -> list[str]:
        """Return the names of files and directories directly below a path."""
        return [*self.entries(path)]

    def size_of(self, path: RemotePath) -> int | None:
        """Return the bytes of a file, by the listing of its directory."""
        try:
            entry = self.entries(path.parent).get(path.name)
        except OSError:
            return None
        return None if entry is None else entry.size

    def known_size(self, path: RemotePath) -> int:
        """Return the bytes of a file in a directory that was listed; else 0."""
        entry = self._listed.get(path.parent, {}).get(path.name)
        return (entry.size or 0) if entry else 0

    def status_of(self, path: RemotePath) -> Status:
        """Return size and time of a file; those of a directory are not known."""
        entry = self.entries(path.parent).get(path.name)
        if entry is None:
            raise FileNotFoundError(2, "no such file", str(path))
        return Status(entry.size or 0, entry.modified)

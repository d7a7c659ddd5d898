"""Stores: the places that hold remote files, such as web servers."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ckptool.errors import UnreadableError
from ckptool.sources.remote import retries
from ckptool.sources.remote.base import RemoteObject, TransferError
from ckptool.sources.remote.file import RemoteFile
from ckptool.sources.urls import RemotePath, Status

if TYPE_CHECKING:
    from ckptool.sources.base import Source


class Store(ABC):
    """A server, or an account of a storage service."""

    @abstractmethod
    def remote(self, path: RemotePath) -> RemoteObject:
        """Return the object at a path, of which nothing is known yet.

        Raises:
            TransferError: the path can name none.
        """

    def open(self, path: RemotePath) -> Source:
        """Return the bytes of a file.

        Raises:
            UnreadableError: there is no such file, or it cannot be read.
        """
        try:
            return RemoteFile(self.remote(path), path, retries.PATIENCE)
        except TransferError as error:
            raise UnreadableError(error.message, path=path, hint=error.hint) from error

    def is_folder(self, path: RemotePath) -> bool:  # noqa: ARG002
        """Return whether files lie below a path; no if the store cannot list them."""
        return False

    def names_in(self, path: RemotePath) -> list[str]:
        """Return the names of files and directories directly below a path.

        Raises:
            OSError: the store cannot list them.
        """
        raise NotADirectoryError(errno.ENOTDIR, "the server lists no files", str(path))

    def size_of(self, path: RemotePath) -> int | None:
        """Return the bytes of a file; None if there is none."""
        try:
            with self.open(path) as source:
                return source.size
        except UnreadableError:
            return None

    def known_size(self, path: RemotePath) -> int:  # noqa: ARG002
        """Return the bytes of a file as far as they are known without a request; else 0."""
        return 0

    def status_of(self, path: RemotePath) -> Status:
        """Return size and time of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        size = self.size_of(path)
        if size is None:
            raise FileNotFoundError(2, "no such file", str(path))
        return Status(size, 0)


class WebStore(Store):
    """Web servers, which list nothing."""

    def remote(self, path: RemotePath) -> RemoteObject:
        """Return the object at a URL."""
        from ckptool.sources.remote.http import HttpObject  # noqa: PLC0415 - http and ssl
        from ckptool.sources.remote.web import Web  # noqa: PLC0415

        return HttpObject(path.url, Web(retries.PATIENCE))

"""Remote objects: the few requests that a server has to answer, and how they fail.

An object is a run of bytes on a server, at one version. Each kind of server is a subclass of
:class:`RemoteObject`. ``file.py`` makes a source of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod


class TransferError(OSError):
    """A request that did not succeed; ``hint`` says what to do.

    ``is_transient`` is true if the same request may succeed later, ``wait`` are the seconds for
    which the server asks.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        is_transient: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.is_transient = is_transient
        self.wait = wait
        self.received = 0  # bytes that came before


class NotThereError(TransferError):
    """The server has no such file."""


class ReplacedError(TransferError):
    """The object is not the one that was opened."""

    def __init__(self, message: str = "the file was replaced while it was read") -> None:
        super().__init__(message, "run the command again when the upload has finished")


class RemoteObject(ABC):
    """Bytes on a server. Its methods are called from several threads, but for the first one."""

    size: int  # bytes, known after :meth:`last`

    @property
    @abstractmethod
    def version(self) -> str:
        """A name of these bytes, an ETag or a date; empty: the server states none."""

    @abstractmethod
    def last(self, nbytes: int) -> bytes:
        """Return the last bytes, at most ``nbytes`` or else all; find out size and version.

        Raises:
            TransferError: the object cannot be read.
        """

    @abstractmethod
    def get(self, buffer: memoryview, offset: int) -> int:
        """Fill the beginning of ``buffer`` by one request; return the number of bytes.

        Raises:
            ReplacedError: the object has another version now.
            TransferError: the request did not succeed. Bytes that came before stay in ``buffer``:
                their number is ``received`` of the error.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

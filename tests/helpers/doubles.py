"""Sources that behave as remote ones can: they answer in small parts, too late, wrongly, or not."""

from __future__ import annotations

import time

from ckptool.sources.base import Source


class Double(Source):
    """Bytes in memory that are asked for as a server is; counts the requests."""

    def __init__(self, data: bytes, name: str = "double.pt") -> None:
        super().__init__(name, len(data))
        self.data = data
        self.requests = 0
        self.is_closed = False

    def fetch(self, offset: int, nbytes: int) -> bytes:
        self.requests += 1
        return self.data[offset : offset + nbytes]

    def close(self) -> None:
        self.is_closed = True


class Slow(Double):
    """Every answer takes a while."""

    def fetch(self, offset: int, nbytes: int) -> bytes:
        time.sleep(0.001)
        return super().fetch(offset, nbytes)


class Short(Double):
    """No answer is longer than a few bytes, whatever was asked for."""

    def fetch(self, offset: int, nbytes: int) -> bytes:
        return super().fetch(offset, min(nbytes, 100))


class Breaking(Double):
    """After some requests it behaves otherwise."""

    def __init__(self, data: bytes, good: int) -> None:
        super().__init__(data)
        self.good = good  # requests that are answered as they should be

    def fetch(self, offset: int, nbytes: int) -> bytes:
        data = super().fetch(offset, nbytes)
        return data if self.requests <= self.good else self.broken(data)

    def broken(self, data: bytes) -> bytes:
        """Return what comes instead."""
        raise NotImplementedError


class Failing(Breaking):
    """The connection is lost."""

    def broken(self, data: bytes) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")


class Ending(Breaking):
    """It has become shorter."""

    def broken(self, data: bytes) -> bytes:
        return b""


class Overlong(Breaking):
    """It answers with more than was asked for, as a server does that knows no ranges."""

    def broken(self, data: bytes) -> bytes:
        return data + b"more"


class Changing(Breaking):
    """Another version is put in its place, with every bit turned round."""

    def broken(self, data: bytes) -> bytes:
        return bytes(byte ^ 0xFF for byte in data)

    def has_changed(self) -> bool:
        return self.requests > self.good

"""A writer of pickles of protocol 2, with the few instructions that plain data and tensors need."""

from __future__ import annotations

from collections.abc import Sequence


def fetched(place: int) -> bytes:
    """Return the instruction that fetches a value from a place of the memo."""
    return b"h" + bytes([place]) if place < 256 else b"j" + place.to_bytes(4, "little")


def memorized(place: int) -> bytes:
    """Return the instruction that puts a value at a place of the memo."""
    return b"q" + bytes([place]) if place < 256 else b"r" + place.to_bytes(4, "little")


def text_of(text: str) -> bytes:
    """Return the instruction that makes a text."""
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


class PickleWriter:
    """A pickle that grows from its beginning to its end; each method appends one value."""

    def __init__(self) -> None:
        self._parts = [b"\x80\x02"]
        self._memo: dict[tuple[str, str], int] = {}

    def raw(self, code: bytes) -> PickleWriter:
        """Append instructions."""
        self._parts.append(code)
        return self

    def text(self, text: str) -> PickleWriter:
        """Append a text."""
        return self.raw(text_of(text))

    def named(self, module: str, name: str) -> PickleWriter:
        """Append a class or function: by its name the first time, from the memo afterwards."""
        if (module, name) in self._memo:
            return self.raw(fetched(self._memo[module, name]))
        place = self._memo[module, name] = len(self._memo)
        return self.raw(f"c{module}\n{name}\n".encode() + memorized(place))

    def integer(self, number: int) -> PickleWriter:
        """Append an integer, which is not negative."""
        if 0 <= number < 1 << 8:
            return self.raw(b"K" + bytes([number]))
        if number < 1 << 31:
            return self.raw(b"J" + number.to_bytes(4, "little"))
        return self.raw(b"\x8a\x09" + number.to_bytes(9, "little"))

    def integers(self, numbers: Sequence[int]) -> PickleWriter:
        """Append a tuple of integers."""
        self.raw(b"(")
        for number in numbers:
            self.integer(number)
        return self.raw(b"t")

    def finish(self) -> bytes:
        """Return the whole pickle."""
        return b"".join([*self._parts, b"."])

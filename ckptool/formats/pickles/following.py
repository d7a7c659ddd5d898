"""Pickles that ckptool refuses, followed for their names alone as far as any unpickler of Python.

The reader refuses what no pickler writes, where loaders differ or the outcome is no tree: octal
integers, items that are set on a list, keys that take too long to hash. For the pickle of a file
that is the end: the file is refused. A pickle beside it may be any other bytes, so that what cannot
be read is passed over; there the instructions behind the refused one count too.

Numbers are those of C's unpickler and of Python's: ``INT`` and ``LONG`` in base 0, where C reads
``010`` as octal, and each ends at a zero byte in C. No value is made, hashed or kept.
"""

from __future__ import annotations

from typing import Any

from ckptool.formats.pickles.machine import Builder
from ckptool.regex import regex
from ckptool.tree.nodes import GlobalRef, Opaque

_OCTAL = regex(rb"\s*[+-]?0[0-7]+\s*")


class Follower(Builder):
    """Maker of no values, which goes on wherever an unpickler of Python may."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[GlobalRef] = set()

    def object_to(self, what: str) -> None:
        """Ignore what the reader objects to."""

    def set_items(self, target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        """Set no items, so that nothing is hashed."""

    def add(self, target: set[Any], keys: list[Any]) -> None:
        """Add no elements."""

    def append(self, target: list[Any], values: list[Any]) -> None:
        """Append no elements."""

    def call(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Note a function that is called."""
        if isinstance(func, GlobalRef):
            self.called.add(func)
        return _MADE

    def new(self, cls: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """Make nothing."""
        return _MADE

    def build(self, obj: Any, state: Any) -> Any:
        """Set no state."""
        return obj

    def persistent(self, saved_id: Any) -> Any:
        """Make nothing."""
        return _MADE

    def items_of(self, target: Any) -> dict[Any, Any]:
        """Return a dict for any target: lists and arrays of bytes take items too."""
        return {}

    def elements_of(self, target: Any, how: str) -> list[Any]:
        """Return a list for any target."""
        return []

    def integer(self, line: bytes) -> int:
        """Return the integer of a line in base 0."""
        line = line.partition(b"\0")[0]
        if _OCTAL.fullmatch(line):
            return int(line, 8)
        return int(line, 0)

    def long(self, line: bytes) -> int:
        """Return the integer of a line that may end in an L."""
        return self.integer(line.partition(b"\0")[0].removesuffix(b"L"))

    def real(self, line: bytes) -> float:
        """Return the number of a line."""
        return float(line.partition(b"\0")[0])


_MADE = Opaque("<made>")

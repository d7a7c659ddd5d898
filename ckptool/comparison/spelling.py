"""Canonical text of any value: two values that differ have different texts.

It serves values without key paths of their own: the items of a set, the keys of a dict, the
arguments of an object. ``repr`` would not do, since a hostile pickle can make it endless. Here a
value that is spelled once is remembered by identity, and a long text is replaced by its digest.
Values that are shared in circles are spelled anew each way around, so this is given up after
``MAX_SPELLED`` parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.tensors.blocks import value_bytes
from ckptool.tree.nodes import (
    ArrayRef,
    BytesRef,
    CompositeTensor,
    GlobalRef,
    Opaque,
    StorageRef,
    TensorRef,
    is_plain,
)

MAX_NESTED = 64  # levels; hashable items of a set or a dict nest only a few
LONG_TEXT = 1000  # characters; the digest of a longer text stands for it
MAX_SPELLED = 1 << 21  # parts of groups in one tree
READ = 1 << 20  # bytes read at a time


def is_spelled_out(value: Any, depth: int = 0) -> bool:
    """Return whether the value holds nothing but scalars, bytes and names."""
    if isinstance(value, (tuple, frozenset)):
        return depth < MAX_NESTED and all(is_spelled_out(part, depth + 1) for part in value)
    return is_plain(value) or isinstance(value, (bytes, GlobalRef))


def span_digest(reader: TensorReader, ref: ArrayRef | BytesRef | StorageRef) -> str:
    """Return the SHA-256 of the bytes as they are in the file, in hexadecimal."""
    digest = sha256()
    if ref.span is not None:
        for start in range(0, ref.span.nbytes, READ):
            digest.update(reader.read(ref.span, start, READ))
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Return the SHA-256 of any text in hexadecimal, with lone surrogates."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Speller:
    """Writer of the canonical texts of one tree, which must stay in memory meanwhile."""

    def __init__(self, reader: TensorReader) -> None:
        self.reader = reader
        self._known: dict[int, str] = {}  # by identity, of groups and long texts
        self._spelled = 0  # parts of groups
        self._refers_up = False  # whether a part of the current group refers to one around it

    def spell(self, value: Any, around: tuple[int, ...] = ()) -> str:
        """Return the canonical text of a value.

        Raises:
            DamagedError: the value nests deeper than ``MAX_NESTED`` levels, or unfolds without end.
        """
        self._spelled += bool(around)
        if self._spelled > MAX_SPELLED:
            raise DamagedError("objects in sets or keys are shared so often that they never end")
        if isinstance(value, int) and not isinstance(value, bool):
            return hex(value) if value.bit_length() > 64 else str(value)
        if isinstance(value, (str, bytes, bytearray)):
            return self._text(value) if len(value) <= LONG_TEXT else self._once(value)
        if is_plain(value):
            return repr(value)
        if isinstance(value, GlobalRef):
            return f"<{value.qualname}>"
        return self._known.get(id(value)) or self._group(value, around)

    def _once(self, value: str | bytes | bytearray) -> str:
        if id(value) not in self._known:
            self._known[id(value)] = self._text(value)
        return self._known[id(value)]

    def _text(self, value: str | bytes | bytearray) -> str:
        if isinstance(value, str):
            return _shortened(repr(value), value)
        return f"bytes {sha256(value).hexdigest()}"

    def _group(self, value: Any, around: tuple[int, ...]) -> str:
        level = len(around)
        if id(value) in around:
            self._refers_up = True
            return f"<{level - around.index(id(value))} levels up>"
        if level >= MAX_NESTED:
            raise DamagedError(f"a set or a key nests deeper than {MAX_NESTED} levels")
        before, self._refers_up = self._refers_up, False
        text = _shortened("".join(self._pieces(value, (*around, id(value)))), value)
        if not self._refers_up:  # else its text depends on the groups around it
            self._known[id(value)] = text
        self._refers_up |= before
        return text

    def _pieces(self, value: Any, inside: tuple[int, ...]) -> Iterator[str]:
        if isinstance(value, (tuple, list)):
            yield from ("(", self._joined(value, inside), ")")
        elif isinstance(value, (set, frozenset)):
            yield from ("{", ", ".join(sorted(self.spell(part, inside) for part in value)), "}")
        elif isinstance(value, dict):
            rows = (f"{self.spell(k, inside)}: {self.spell(v, inside)}" for k, v in value.items())
            yield from ("{", ", ".join(sorted(rows)), "}")
        elif isinstance(value, Opaque):
            parts = (value.args, value.kwargs, value.state, value.items, value.elements)
            yield from (f"<{value.qualname} ", self._joined(parts, inside), ">")
        else:
            yield from self._stored(value, inside)

    def _joined(self, values: Iterable[Any], inside: tuple[int, ...]) -> str:
        return ", ".join(self.spell(value, inside) for value in values)

    def _stored(self, value: Any, inside: tuple[int, ...]) -> Iterator[str]:
        if isinstance(value, TensorRef):
            digest = sha256()
            for block in value_bytes(self.reader, value):
                digest.update(block)
            yield f"<tensor {value.dtype} {list(value.shape)} {digest.hexdigest()}>"
        elif isinstance(value, CompositeTensor) and value.wrapper is not None:
            yield self.spell(value.wrapper, inside)
        elif isinstance(value, CompositeTensor):
            yield from (f"<{value.layout} ", self._joined(value.parts.values(), inside), ">")
        elif isinstance(value, (ArrayRef, BytesRef, StorageRef)):
            form = f"{value.dtype} " if isinstance(value, (ArrayRef, StorageRef)) else ""
            shape = list(value.shape) if isinstance(value, ArrayRef) else ""
            objects = value.objects if isinstance(value, ArrayRef) else None
            yield f"<{form}{shape} {span_digest(self.reader, value)} "
            yield from (self.spell(objects, inside), ">")
        else:
            yield f"<{type(value).__name__}>"


def _shortened(text: str, value: Any) -> str:
    """Return the digest of a long text: one string may be an argument of a million objects."""
    if len(text) <= LONG_TEXT:
        return text
    return f"<{type(value).__name__}, sha256 {text_digest(text)}>"

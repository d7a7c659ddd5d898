"""Any value as one text, such that two that differ are spelled differently.

For what has no addresses of its own: what is in a set, the keys of a dict, the arguments of an
object. Not by ``repr``, which a hostile pickle can make endless: what is spelled once is remembered
by identity, and a long text is replaced by its digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.numerics import value_bytes
from ckptool.tree import (
    ArrayRef,
    BytesRef,
    CompositeTensor,
    GlobalRef,
    Opaque,
    StorageRef,
    TensorRef,
)

MAX_NESTED = 64  # levels; what is hashed into a set or a dict nests a few
LONG_TEXT = 1000  # characters of a value, from which on its digest stands for it
READ = 1 << 20  # bytes of a long run read at a time


def is_plain(value: Any) -> bool:
    """Whether it is a scalar of Python's."""
    return value is None or isinstance(value, (bool, int, float, complex, str))


def is_spelled_out(value: Any, depth: int = 0) -> bool:
    """Whether it holds nothing but scalars, bytes and names."""
    if isinstance(value, (tuple, frozenset)):
        return depth < MAX_NESTED and all(is_spelled_out(part, depth + 1) for part in value)
    return is_plain(value) or isinstance(value, (bytes, GlobalRef))


def spell(value: Any, reader: TensorReader) -> str:
    """The text of a value.

    Raises:
        DamagedError: nested deeper than ``MAX_NESTED`` levels.
    """
    return _Speller(reader).spell(value, ())


def span_digest(reader: TensorReader, ref: ArrayRef | BytesRef | StorageRef) -> str:
    """SHA-256 of the bytes as they lie in the file, in hexadecimal."""
    digest = sha256()
    if ref.span is not None:
        for start in range(0, ref.span.nbytes, READ):
            digest.update(reader.read(ref.span, start, READ))
    return digest.hexdigest()


class _Speller:
    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self._known: dict[int, str] = {}  # by identity, of groups

    def spell(self, value: Any, around: tuple[int, ...]) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return hex(value) if value.bit_length() > 64 else str(value)
        if is_plain(value):
            return _shortened(repr(value), value)
        if isinstance(value, (bytes, bytearray)):
            return f"bytes {sha256(value).hexdigest()}"
        if isinstance(value, GlobalRef):
            return f"<{value.qualname}>"
        return self._known.get(id(value)) or self._group(value, around)

    def _group(self, value: Any, around: tuple[int, ...]) -> str:
        if id(value) in around:
            return f"<{len(around) - around.index(id(value))} levels up>"
        if len(around) >= MAX_NESTED:
            raise DamagedError(f"a set or a key nests deeper than {MAX_NESTED} levels")
        inside = (*around, id(value))
        text = _shortened("".join(self._pieces(value, inside)), value)
        self._known[id(value)] = text
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
            for block in value_bytes(self._reader, value):
                digest.update(block)
            yield f"<tensor {value.dtype} {list(value.shape)} {digest.hexdigest()}>"
        elif isinstance(value, CompositeTensor):
            yield from (f"<{value.layout} ", self._joined(value.parts.values(), inside), ">")
        elif isinstance(value, (ArrayRef, BytesRef, StorageRef)):
            form = f"{value.dtype} " if isinstance(value, (ArrayRef, StorageRef)) else ""
            shape = list(value.shape) if isinstance(value, ArrayRef) else ""
            objects = value.objects if isinstance(value, ArrayRef) else None
            yield f"<{form}{shape} {span_digest(self._reader, value)} "
            yield from (self.spell(objects, inside), ">")
        else:
            yield f"<{type(value).__name__}>"


def _shortened(text: str, value: Any) -> str:
    """The digest of a long text: one string may be an argument of a million objects."""
    if len(text) <= LONG_TEXT:
        return text
    return f"<{type(value).__name__}, sha256 {sha256(_encoded(text)).hexdigest()}>"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

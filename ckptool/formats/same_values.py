"""Comparison of tensors of several files, byte for byte.

A small file can hold a hundred thousand tensors that each view all of it. So two runs of bytes are
compared once, and all comparisons together read a few times the files at most. Many bytes, and
those behind a URL, are compared when a command takes values, and not while the files are opened.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckptool.errors import DamagedError, RepetitionError
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.tree.nodes import Chunk, TensorRef

COMPARED = 1 << 20  # bytes at a time
MAX_COMPARED = 1 << 29  # bytes that are always compared,
REPEATS = 2  # or so many times the bytes of all files


AT_ONCE = 1 << 26  # bytes that are compared while the files are opened


class Copy(NamedTuple):
    """A tensor that two files hold."""

    name: str
    file: str  # the name of the second one
    kept: TensorRef
    other: TensorRef


class SameValues:
    """Comparisons of the tensors of one checkpoint, byte for byte."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self._found: dict[tuple[ByteSpan, ByteSpan], bool] = {}
        self._left = max(MAX_COMPARED, REPEATS * sum(source.size for source in reader.opened))

    def are_equal(self, one: TensorRef, other: TensorRef) -> bool:
        """Return whether two tensors are stored alike, with the same bytes.

        Raises:
            RepetitionError: tensors view the same bytes too often to compare all of them.
        """
        return may_be_equal(one, other) and all(
            self._are_same(a.span, b.span) for a, b in zip(one.chunks, other.chunks, strict=True)
        )

    def refuse_different(self, copies: Sequence[Copy]) -> None:
        """Refuse tensors that have other values in another file.

        Raises:
            DamagedError: one has.
            RepetitionError: see :meth:`are_equal`.
        """
        self._reader.expect_values(ref for copy in copies for ref in (copy.kept, copy.other))
        for copy in copies:
            if not self.are_equal(copy.kept, copy.other):
                raise differs(copy.name, copy.file)

    def is_cheap(self, copies: Sequence[Copy]) -> bool:
        """Return whether copies are near and few bytes, so that opening the files may compare."""
        is_near = all(source.is_near for source in self._reader.opened)
        return is_near and sum(copy.kept.nbytes for copy in copies) <= AT_ONCE

    def _are_same(self, one: ByteSpan, other: ByteSpan) -> bool:
        if (one, other) not in self._found:
            self._left -= one.nbytes
            if self._left < 0:
                raise RepetitionError(
                    "tensors of several files view the same bytes again and again: to compare all "
                    "of them would take too long",
                    hint="name one of the files to see what it holds: ckptool inspect FILE",
                )
            self._found[one, other] = self._have_same_bytes(one, other)
        return self._found[one, other]

    def _have_same_bytes(self, one: ByteSpan, other: ByteSpan) -> bool:
        return all(
            self._reader.read(one, start, COMPARED) == self._reader.read(other, start, COMPARED)
            for start in range(0, one.nbytes, COMPARED)
        )


def differs(name: str, file: str) -> DamagedError:
    """Return the error for a tensor that is another one in another file."""
    return DamagedError(
        f"it is in {file} and, with other values, in another shard too; loaders take whole "
        "shards: the last one that they load counts",
        address=name,
        hint="fetch the files again, all from one save",
    )


def may_be_equal(one: TensorRef, other: TensorRef) -> bool:
    """Return whether two tensors are stored alike, whatever their values."""
    is_plain = bool(one.chunks) and one.quantizer is None and other.quantizer is None
    return is_plain and _form(one) == _form(other)


def _form(ref: TensorRef) -> tuple[object, ...]:
    """Return what two tensors have in common whose bytes mean the same values."""
    return ref.dtype, ref.shape, ref.byteorder, ref.lazy, ref.subclass, *map(_place, ref.chunks)


def _place(chunk: Chunk) -> tuple[object, ...]:
    return (chunk.span.nbytes, *chunk[1:])

"""Comparison of tensors of several files, byte for byte, while the files are opened.

A small file can hold a hundred thousand tensors that each view all of it. So two runs of bytes are
compared once, and all comparisons together read a few times the files at most.
"""

from __future__ import annotations

from ckptool.errors import RepetitionError
from ckptool.formats.base import TensorReader
from ckptool.sources.base import ByteSpan
from ckptool.tree.nodes import Chunk, TensorRef

COMPARED = 1 << 20  # bytes at a time
MAX_COMPARED = 1 << 29  # bytes that are always compared,
REPEATS = 2  # or so many times the bytes of all files


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
        is_plain = bool(one.chunks) and one.quantizer is None and other.quantizer is None
        return (
            is_plain
            and _form(one) == _form(other)
            and all(
                self._are_same(a.span, b.span)
                for a, b in zip(one.chunks, other.chunks, strict=True)
            )
        )

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


def _form(ref: TensorRef) -> tuple[object, ...]:
    """Return what two tensors have in common whose bytes mean the same values."""
    return ref.dtype, ref.shape, ref.byteorder, ref.lazy, ref.subclass, *map(_place, ref.chunks)


def _place(chunk: Chunk) -> tuple[object, ...]:
    return (chunk.span.nbytes, *chunk[1:])

"""Digests of the rows of tensors: tensors that hold each other's rows have digests in common.

A row is what one index along a dimension selects, in C order; of a vector it is the element itself.
Values may be cast first, so that the rows of a tensor are found in its copy of another dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from math import prod

from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.tensors.blocks import blocks, bytes_of, numpy_dtype, value_bytes
from ckptool.tensors.casting import CASTABLE, converted
from ckptool.tree.nodes import TensorRef
from ckptool.tree.reshaping import axis_first, transposed

MAX_ELEMENTS = 1 << 20  # of a vector
MAX_ROWS = 1 << 22  # digests that are always computed,
A_ROW = 1 << 8  # or one for so many bytes of the tensors
ELEMENTS = 8  # of a vector, which are no digests, that take the time and the memory of one
DIGEST = 16  # bytes

Row = bytes


class TooManyError(Exception):
    """The search for parts of tensors would take too long."""


def can_become(ref: TensorRef, dtype: DType) -> bool:
    """Return whether a cast of the tensor to a dtype can be looked for."""
    return ref.dtype is dtype or {ref.dtype.name, dtype.name} <= CASTABLE.keys()


class Rows:
    """The digests of the tensors of one checkpoint, each computed once."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self._known: dict[tuple[int, int, str], tuple[Row, ...]] = {}
        self._kept: list[TensorRef] = []  # so that no id is given to another tensor
        self._count = self._nbytes = 0  # of the rows so far

    def along(self, ref: TensorRef, axis: int, dtype: DType) -> tuple[Row, ...]:
        """Return the digest of each row along a dimension; of long vectors, nothing.

        Raises:
            TooManyError: the rows are so many and so short that they take too long.
        """
        key = (id(ref), axis, dtype.name)
        if key not in self._known:
            self._spend(ref, ref.shape[axis])
            self._kept.append(ref)
            self._known[key] = tuple(self._rows(ref, axis, dtype))
        return self._known[key]

    def _spend(self, ref: TensorRef, rows: int) -> None:
        """Count rows before they are made."""
        self._count += rows // ELEMENTS if len(ref.shape) == 1 else rows
        self._nbytes += ref.nbytes
        if self._count > max(MAX_ROWS, self._nbytes // A_ROW):
            raise TooManyError

    def whole(self, ref: TensorRef, dtype: DType) -> Row:
        """Return the digest of all values, whatever their shape."""
        key = (id(ref), -1, dtype.name)
        if key not in self._known:
            self._kept.append(ref)
            digest = blake2b(digest_size=DIGEST)
            for block in self._blocks(ref, dtype):
                digest.update(block)
            self._known[key] = (digest.digest(),)
        return self._known[key][0]

    def turned(self, ref: TensorRef, dtype: DType) -> Row:
        """Return the digest of all values of the transpose."""
        key = (id(ref), -2, dtype.name)
        if key not in self._known:
            self._kept.append(ref)
            self._known[key] = (self.whole(transposed(ref), dtype),)
        return self._known[key][0]

    def _rows(self, ref: TensorRef, axis: int, dtype: DType) -> Iterator[Row]:
        nbytes = prod((*ref.shape[:axis], *ref.shape[axis + 1 :])) * dtype.itemsize
        is_vector = len(ref.shape) == 1
        if not ref.numel or (is_vector and ref.numel > MAX_ELEMENTS):
            return
        values = self._blocks(axis_first(ref, axis) if axis else ref, dtype)
        if is_vector:
            for block in values:
                for at in range(0, len(block), nbytes):
                    yield bytes(block[at : at + nbytes])
        else:
            yield from _digests(values, nbytes)

    def _blocks(self, ref: TensorRef, dtype: DType) -> Iterator[bytes | memoryview]:
        if ref.dtype is dtype:
            yield from value_bytes(self._reader, ref)
            return
        wanted = numpy_dtype(dtype)
        for values in blocks(self._reader, ref):
            yield bytes_of(converted(values, wanted).values)


def _digests(blocks: Iterable[bytes | memoryview], nbytes: int) -> Iterator[Row]:
    """Yield the digest of each run of ``nbytes`` bytes."""
    digest, missing = blake2b(digest_size=DIGEST), nbytes
    for block in blocks:
        view, at = memoryview(block), 0
        while at < len(view):
            part = view[at : at + missing]
            digest.update(part)
            at, missing = at + len(part), missing - len(part)
            if not missing:
                yield digest.digest()
                digest, missing = blake2b(digest_size=DIGEST), nbytes

"""The bytes that two tensors are compared by: their values in C order, little-endian.

Most tensors lie so in their files and are read where they lie, in pieces. What does not (strided,
big-endian, conjugated, quantized) is brought into this form in memory, by the thread that needs
it. A quantized tensor is compared by the real values that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from ckptool.comparison.arrays import real_values
from ckptool.comparison.leaves import Held
from ckptool.dtypes import BY_NAME, DType
from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.numerics import in_order, value_bytes
from ckptool.tree import Blob, ByteSpan, TensorRef

FLOAT64, UINT8 = BY_NAME["float64"], BY_NAME["uint8"]


class Values(NamedTuple):
    """Where the bytes of one tensor come from."""

    ref: TensorRef
    reader: TensorReader
    dtype: DType  # of the elements as compared
    nbytes: int
    spans: tuple[ByteSpan, ...] | None  # one after the other, they are the bytes; None: made

    def read(self, start: int, nbytes: int) -> bytes:
        """A run of the bytes, for tensors that lie ready."""
        parts = [self.reader.read(span) for span in self._parts(start, nbytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, room: memoryview, start: int) -> memoryview:
        """As many of the bytes as ``room`` has, for tensors that lie ready."""
        filled = 0
        for span in self._parts(start, len(room)):
            part = room[filled : filled + span.nbytes]
            if isinstance(data := self.reader.read_into(part, span), bytes):  # from no file
                part[:] = data
            filled += span.nbytes
        return room

    def _parts(self, start: int, nbytes: int) -> Iterator[ByteSpan]:
        """Where a run of the bytes lies."""
        assert self.spans is not None
        for source, offset, length in self.spans:
            if start < length and nbytes:
                count = min(nbytes, length - start)
                yield ByteSpan(source, offset + start, count)
                nbytes -= count
            start = max(start - length, 0)

    def whole(self) -> bytes:
        """All of the bytes, made if need be."""
        if self.spans is not None:
            return self.read(0, self.nbytes)
        if self.dtype is FLOAT64 and self.ref.quantizer is not None:
            return real_values(self.reader, self.ref)
        return b"".join(value_bytes(self.reader, self.ref)) + packing(self.reader, self.ref)

    @property
    def places(self) -> tuple[object, ...] | None:
        """What is equal for two that are the same bytes of the same files; None: made."""
        if self.spans is None:
            return None
        files = (_identity(self.reader, span) for span in self.spans)
        return tuple(zip(files, (span[1:] for span in self.spans), strict=True))


def values_of(held: Held) -> Values | None:
    """How to read a tensor; None for those without values (meta).

    Raises:
        DamagedError: its chunks do not cover it.
    """
    ref, reader = held
    if not ref.chunks:
        return None
    spans = tuple(chunk.span for chunk in ref.chunks)
    for span in spans:
        _identity(reader, span)  # opens the file here, so that no two threads do
    if ref.quantizer is not None or ref.dtype.packed > 1:
        if ref.dtype.numpy is not None:
            return Values(ref, reader, FLOAT64, ref.numel * FLOAT64.itemsize, None)
        return Values(ref, reader, UINT8, ref.nbytes + len(packing(reader, ref)), None)
    if not _lies_ready(ref):
        return Values(ref, reader, ref.dtype, ref.nbytes, None)
    if sum(span.nbytes for span in spans) != ref.nbytes:
        raise DamagedError(f"the chunks of a tensor of shape {list(ref.shape)} do not cover it")
    return Values(ref, reader, ref.dtype, ref.nbytes, spans)


def _lies_ready(ref: TensorRef) -> bool:
    little = ref.byteorder == "little" or ref.dtype.itemsize == 1
    contiguous = all(chunk.is_contiguous for chunk in ref.chunks)
    return little and not ref.lazy and contiguous and in_order(ref)


def _identity(reader: TensorReader, span: ByteSpan) -> tuple[object, ...]:
    if isinstance(span.source, Blob):
        return (id(span.source),)
    status = reader.file(span.source).status
    return (status.st_dev, status.st_ino)


def packing(reader: TensorReader, ref: TensorRef) -> bytes:
    """What the stored integers of a quantized tensor mean, as bytes of a fixed length."""
    if ref.quantizer is None:
        return b""
    scheme, scale, zero_point, axis = ref.quantizer
    parts = [
        b"".join(value_bytes(reader, part)) if isinstance(part, TensorRef) else repr(part).encode()
        for part in (scale, zero_point)
    ]
    return sha256(b"\0".join([scheme.encode(), repr(axis).encode(), *parts])).digest()

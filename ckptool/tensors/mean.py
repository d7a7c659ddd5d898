"""The weighted mean of tensors as a source of bytes: computed where it is read, never stored.

Writers read a mean as they read a file, block by block, so memory does not grow with the tensors or
their number. Values are added in float64, in the order of the tensors, divided, and rounded once.
So the result does not depend on the order of reading or on threads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.sources.base import ByteSpan, Source
from ckptool.tensors.blocks import Part, bytes_of, cast, chunk_values, numpy_dtype, parts
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Chunk, TensorRef

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NO_ROOM = memoryview(b"")


class Weighted(NamedTuple):
    """A tensor and its part of the whole."""

    reader: TensorReader
    ref: TensorRef
    part: float


class Mean(Source):
    """The bytes of a mean in C order, little-endian."""

    def __init__(self, name: str, tensors: Sequence[Weighted], whole: float, dtype: DType) -> None:
        super().__init__(name, tensors[0].ref.numel * dtype.itemsize)
        self._dtype = dtype
        self._whole = whole
        self._series = [(_Series(each.reader, each.ref), each.part) for each in tensors]

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the mean, which may begin and end inside a value."""
        size = self._dtype.itemsize
        start, end = offset // size, -(-(offset + nbytes) // size)
        values = self._values(start, end - start)
        skip = offset - start * size
        return bytes(bytes_of(values)[skip : skip + nbytes])

    def _values(self, start: int, count: int) -> Array:
        import numpy as np

        total = np.zeros(count, np.float64)
        with np.errstate(all="ignore"):  # infinities and NaN are told by those who write
            for series, part in self._series:
                values = series.values(start, count)
                if part != 1:
                    values = values.astype(np.float64) * part
                total += values
            total /= self._whole
            return cast(total, numpy_dtype(self._dtype))

    def as_tensor(self, shape: tuple[int, ...]) -> TensorRef:
        """Return the mean as a tensor of one chunk."""
        span, offsets = ByteSpan(self, 0, self.size), (0,) * len(shape)
        chunk = Chunk(span, offsets, shape, contiguous_strides(shape))
        return TensorRef(self._dtype, shape, (chunk,))


class _Series:
    """The values of a tensor in C order, from any place on."""

    def __init__(self, reader: TensorReader, ref: TensorRef) -> None:
        self._reader, self._ref = reader, ref
        self._parts: list[Part] = []
        self._starts: list[int] = []  # of the parts, in values

    def values(self, start: int, count: int) -> Array:
        """Return ``count`` values from ``start``."""
        ref = self._ref
        if ref.is_stored_plainly and count:
            source, offset, _ = ref.chunks[0].span
            size = ref.dtype.itemsize
            span = ByteSpan(source, offset + start * size, count * size)
            return chunk_values(self._reader, ref, Chunk(span, (0,), (count,), (1,)))
        return _joined(self._cut(start, count))

    def _cut(self, start: int, count: int) -> Iterable[Array]:
        """Yield the values of a tensor that lies in no single run, part by part."""
        if not self._parts:
            size = self._ref.dtype.itemsize
            found = list(parts(self._reader, self._ref))
            self._starts = [
                0, *accumulate(part.nbytes // size for part in found)
            ][: len(found)]  # fmt: skip
            self._parts = found
        at = max(bisect_right(self._starts, start) - 1, 0)
        end = start + count
        while at < len(self._parts) and self._starts[at] < end:
            values, begin = self._parts[at].values(NO_ROOM), self._starts[at]
            yield values[max(start - begin, 0) : end - begin]
            at += 1


def _joined(pieces: Iterable[Array]) -> Array:
    import numpy as np

    return np.concatenate([*pieces] or [np.zeros(0)])

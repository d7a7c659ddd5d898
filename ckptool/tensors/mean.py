"""The weighted mean of tensors as a source of bytes: computed where it is read, never stored.

Writers read a mean as they read a file, block by block, so memory does not grow with the tensors or
their number. Values are added in float64, in the order of the tensors, divided, and rounded once.
So the result does not depend on the order of reading or on threads.

Each byte of a tensor is read once, and its checksum is computed on the way: see :meth:`Mean.seen`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from threading import Lock, local
from typing import TYPE_CHECKING, Any

from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.tensors.blocks import (
    Part,
    bytes_of,
    cast,
    element_dtype,
    numpy_dtype,
    parts,
    value_bytes,
)
from ckptool.tensors.crc import Seen, crc32
from ckptool.tensors.windows import read_each
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Chunk, TensorRef

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NO_ROOM = memoryview(b"")
# Values that are added at a time. The float64 sums of fewer would fit a smaller cache, but then the
# threads would mostly wait for the interpreter's lock, since calls would be so short.
STEP = 1 << 18
WIDEST = 8  # bytes of a value


class Weighted(NamedTuple):
    """A tensor and its part of the whole."""

    reader: TensorReader
    ref: TensorRef
    part: float


class Mean(Source):
    """The bytes of a mean in C order, little-endian."""

    is_computed = True

    def __init__(self, name: str, tensors: Sequence[Weighted], whole: float, dtype: DType) -> None:
        super().__init__(name, tensors[0].ref.numel * dtype.itemsize)
        self._dtype = dtype
        self._whole = whole
        self._series = [(_Series(each.reader, each.ref), each.part) for each in tensors]
        self._is_plain = all(series.is_plain for series, _ in self._series)
        # Others are read in parts of their own.
        self._step = STEP if self._is_plain else max(self.size, 1)

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the mean, which may begin and end inside a value."""
        room = bytearray(nbytes)
        self.fetch_into(memoryview(room), offset)
        return bytes(room)

    def fetch_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``, which may begin and end inside a value."""
        size, nbytes = self._dtype.itemsize, len(buffer)
        start, end = offset // size, -(-(offset + nbytes) // size)
        for at in range(start, end, self._step):
            count = min(self._step, end - at)
            made = bytes_of(self._values(at, count))
            skip = max(offset - at * size, 0)
            place = max(at * size - offset, 0)
            kept = made[skip : skip + nbytes - place]
            buffer[place : place + len(kept)] = kept
        return nbytes

    def _values(self, start: int, count: int) -> Array:
        room = _room_for(count)
        return self.sum_of(
            room, count, lambda nth: self._series[nth][0].values(start, count, room.data)
        )

    def sum_of(self, room: _Room, count: int, values_of: Callable[[int], Array]) -> Array:
        """Return the mean of ``count`` values; ``values_of`` gives those of each tensor."""
        import numpy as np

        total, product = room.total[:count], room.product[:count]
        total.fill(0)
        with np.errstate(all="ignore"):  # infinities and NaN are told by those who write
            for nth, (_, part) in enumerate(self._series):
                values = values_of(nth)
                if part == 1:
                    np.add(total, values, out=total, casting="unsafe")
                    continue
                np.copyto(product, values, casting="unsafe")
                product *= part
                total += product
            if self._whole != 1:
                total /= self._whole
            return cast(total, numpy_dtype(self._dtype))

    @property
    def itemsize(self) -> int:
        """The bytes of a value."""
        return self._dtype.itemsize

    @property
    def recipe(self) -> tuple[object, ...] | None:
        """Everything that means have in common that :func:`computed` makes; None: not this one."""
        if not (self._is_plain and all(_is_near(series.ref) for series, _ in self._series)):
            return None
        members = [(id(series.reader), series.ref.dtype, part) for series, part in self._series]
        return (self._dtype, self._whole, *members)

    @property
    def series(self) -> Sequence[tuple[_Series, float]]:
        """Each tensor, with its part."""
        return self._series

    def seen(self) -> Iterator[tuple[TensorRef, Seen]]:
        """Yield each tensor with the checksum of its values in C order, little-endian.

        It is known where the mean was read; a tensor of which a part was not is read here.
        """
        for series, _ in self._series:
            yield series.ref, series.seen()

    @property
    def plain_spans(self) -> frozenset[ByteSpan]:
        """The runs of bytes that are read when the mean is, each as a whole."""
        plain = (series.ref for series, _ in self._series if series.is_plain)
        return frozenset(ref.chunks[0].span for ref in plain)

    def as_tensor(self, shape: tuple[int, ...]) -> TensorRef:
        """Return the mean as a tensor of one chunk."""
        span, offsets = ByteSpan(self, 0, self.size), (0,) * len(shape)
        chunk = Chunk(span, offsets, shape, contiguous_strides(shape))
        return TensorRef(self._dtype, shape, (chunk,))


def computed(means: Sequence[Mean]) -> list[memoryview]:
    """Return the bytes of each of several small means of one recipe, which are read together."""

    def values_of(nth: int) -> Array:
        import numpy as np

        own = [mean.series[nth][0] for mean in means]
        found = read_each([series.ref.chunks[0].span for series in own], own[0].reader.read)
        for series, data in zip(own, found, strict=True):
            series.add(0, data)
        return np.frombuffer(b"".join(found), element_dtype(own[0].ref))

    first, ends = means[0], [0, *accumulate(mean.size for mean in means)]
    count = ends[-1] // first.itemsize
    made = bytes_of(first.sum_of(_room_for(count), count, values_of))
    return [made[start:stop] for start, stop in pairwise(ends)]


def _is_near(ref: TensorRef) -> bool:
    source = ref.chunks[0].span.source
    return source.is_near and not source.is_computed


class _Room(NamedTuple):
    """Buffers for a number of values: new memory is uncached and gets cleared."""

    data: memoryview
    total: Array
    product: Array


_OWN = local()


def _room_for(count: int) -> _Room:
    """Return this thread's buffers, if they are as large; larger ones are not kept."""
    import numpy as np

    if count > STEP:
        return _Room(NO_ROOM, np.empty(count), np.empty(count))
    if not hasattr(_OWN, "room"):
        data = memoryview(bytearray(STEP * WIDEST))
        _OWN.room = _Room(data, np.empty(STEP), np.empty(STEP))
    room: _Room = _OWN.room
    return room


class _Series:
    """The values of a tensor in C order, from any place on, and their checksum."""

    def __init__(self, reader: TensorReader, ref: TensorRef) -> None:
        self.ref = ref
        self.is_plain = ref.is_stored_plainly and len(ref.chunks) == 1
        self.reader = reader
        self._parts: list[Part] = []
        self._starts: list[int] = []  # of the parts, in values
        self._ledger = _Ledger()

    def values(self, start: int, count: int, room: memoryview) -> Array:
        """Return ``count`` values from ``start``, maybe in ``room``."""
        import numpy as np

        size = self.ref.dtype.itemsize
        if self.is_plain:
            source, offset, _ = self.ref.chunks[0].span
            span = ByteSpan(source, offset + start * size, count * size)
            data = self.reader.read_into(room, span)
            self.add(start * size, data)
            return np.frombuffer(data, element_dtype(self.ref))
        values = _joined(self._cut(start, count))
        data = bytes_of(values.byteswap() if values.dtype.byteorder == ">" else values)
        self.add(start * size, data)
        return values

    def add(self, offset: int, data: bytes | memoryview) -> None:
        """Note the checksum of bytes that were read, from an offset on."""
        self._ledger.add(offset, Seen(len(data), crc32(data)))

    def seen(self) -> Seen:
        """Return the checksum of all values; read them if not all have been."""
        found = self._ledger.whole
        if found.nbytes == self.ref.nbytes:
            return found
        found = Seen()
        for block in value_bytes(self.reader, self.ref):
            found = found.then(Seen(len(block), crc32(block)))
        return found

    def _cut(self, start: int, count: int) -> Iterable[Array]:
        """Yield the values of a tensor that lies in no single run, part by part."""
        if not self._parts:
            size = self.ref.dtype.itemsize
            found = list(parts(self.reader, self.ref))
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


class _Ledger:
    """The checksum of a run of bytes whose parts are read by several threads, in any order."""

    def __init__(self) -> None:
        self.whole = Seen()  # from the beginning to the first gap
        self._waiting: dict[int, Seen] = {}  # behind the gap, by their offsets
        self._lock = Lock()

    def add(self, offset: int, part: Seen) -> None:
        """Add a part; parts that overlap others make the checksum unknown."""
        with self._lock:
            self._waiting[offset] = part
            while (following := self._waiting.pop(self.whole.nbytes, None)) is not None:
                if not following.nbytes:
                    return
                self.whole = self.whole.then(following)


def _joined(pieces: Iterable[Array]) -> Array:
    import numpy as np

    return np.concatenate([*pieces] or [np.zeros(0)])

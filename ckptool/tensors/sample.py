"""The first values of a stored tensor as Python numbers, and a sample of many tensors.

A sample of a checkpoint is a few thousand numbers. Plain Python reads them in milliseconds,
without the start-up of numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from struct import Struct, calcsize, unpack
from typing import Any, TypeVar

from ckptool.dtypes import STRUCT_CODES
from ckptool.formats.base import TensorReader
from ckptool.sources.base import ByteSpan
from ckptool.tree.nodes import Chunk, TensorRef

PER_TENSOR = 1 << 12  # bytes
PLACES = 16  # that are tried for a window
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it spread evenly over 0 to 1

Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int) -> Sequence[Item]:
    """Choose at most ``count`` items at irregular distances, in their order.

    With a fixed step every choice could be a bias, since layers repeat.
    """
    if len(items) <= count:
        return items
    places = {int(i * GOLDEN % 1 * len(items)) for i in range(count)}
    return [items[place] for place in sorted(places)]


def is_readable(ref: TensorRef) -> bool:
    """Return whether :func:`beginning` can read it: a real floating tensor, stored in this file.

    Byte order, strides, the negative bit and several chunks are no obstacle. A source behind a URL
    may admit no more samples.
    """
    chunk = _beginning_of(ref)
    return chunk is not None and _admits(chunk)


def has_beginning(ref: TensorRef) -> bool:
    """Return whether :func:`beginning` could read it if it were near."""
    return _beginning_of(ref) is not None


def _beginning_of(ref: TensorRef) -> Chunk | None:
    if ref.dtype.name not in _FLOATS or (ref.lazy and set(ref.lazy) - {"neg"}):
        return None
    return None if 0 in ref.shape else _first_chunk(ref)


def _admits(chunk: Chunk) -> bool:
    source, offset, nbytes = chunk.span
    return source.is_near or source.admits(offset, min(nbytes, PER_TENSOR))


def gather(pairs: Sequence[tuple[TensorRef, TensorRef]]) -> None:
    """Fetch a window from each side of the pairs, if the sources are frugal and can afford it.

    Of a few places, that is taken where most pairs begin in both windows. The pairs that do can be
    read from then on, see :func:`is_readable`.
    """
    begins = [
        (one.chunks[0].span, other.chunks[0].span) for one, other in pairs if _have_one(one, other)
    ]
    if not begins or not all(span.source.window for span in begins[0]):
        return
    places = {(one.source, one.offset): (one, other) for one, other in begins}
    found = max(spread(list(places.values()), PLACES), key=lambda place: _count(place, begins))
    for span, window in [(span, span.source.window) for span in found]:
        span.source.bring(span.offset, window)


def _have_one(*refs: TensorRef) -> bool:
    return all(_first_chunk(ref) is not None for ref in refs)


def _count(place: tuple[ByteSpan, ByteSpan], begins: Sequence[tuple[ByteSpan, ByteSpan]]) -> int:
    """Return the number of pairs that begin in the windows that start at a place."""
    return sum(
        all(
            at.source is span.source
            and 0 <= span.offset - at.offset < at.source.window - PER_TENSOR
            for at, span in zip(place, pair, strict=True)
        )
        for pair in begins
    )


def announce(reader: TensorReader, refs: Iterable[TensorRef]) -> None:
    """Announce what :func:`beginning` reads of each tensor."""
    reader.expect(
        span._replace(nbytes=min(span.nbytes, PER_TENSOR))
        for ref in refs
        if (chunk := _first_chunk(ref)) is not None and (span := chunk.span)
    )


def beginning(reader: TensorReader, ref: TensorRef, limit: int = PER_TENSOR) -> Sequence[float]:
    """Return the first values in C order, at most ``limit`` bytes of them, as they are.

    There are fewer, but never none, if the values lie far apart or in several chunks.
    """
    chunk = _first_chunk(ref)
    if chunk is None:
        return ()
    width = ref.dtype.itemsize
    count = max(1, min(limit // width, _in_order(ref, chunk)))
    data = _run(reader, chunk, count, width)
    numbers = _numbers(ref.dtype.name, data, ref.byteorder)
    return [-number for number in numbers] if "neg" in ref.lazy else numbers


_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
NEAR = 1 << 16  # bytes: values that lie within them are read in one go
FEW = 64  # values read one by one where they lie further apart


def _first_chunk(ref: TensorRef) -> Chunk | None:
    """Return the chunk with the tensor's first element; None if the tensor has no values."""
    for chunk in ref.chunks:  # a loop: next() takes three times as long
        _, offsets, shape, _ = chunk
        if not any(offsets) and 0 not in shape:
            return chunk
    return None


def _in_order(ref: TensorRef, chunk: Chunk) -> int:
    """Return how many of the chunk's first values are the tensor's first values too."""
    count = 1
    for size, whole in zip(reversed(chunk.shape), reversed(ref.shape), strict=True):
        count *= size
        if size != whole:
            break
    return count


def _run(reader: TensorReader, chunk: Chunk, count: int, width: int) -> bytes:
    """Return the bytes of the first values of a chunk in C order."""
    if chunk.is_contiguous:
        return reader.read(chunk.span, 0, count * width)
    places = [at * width for at in _offsets(chunk, count)]
    near = next((i for i, at in enumerate(places) if at + width > NEAR), len(places))
    if near < min(FEW, len(places)):
        return b"".join(reader.read(chunk.span, at, width) for at in places[:FEW])
    data = reader.read(chunk.span, 0, max(places[:near]) + width)
    return b"".join(data[at : at + width] for at in places[:near])


def _offsets(chunk: Chunk, count: int) -> list[int]:
    """Return the offsets of the first values in C order in the chunk's span, in elements."""
    places = [0]
    for size, stride in zip(reversed(chunk.shape), reversed(chunk.strides), strict=True):
        rows = range(min(size, -(-count // len(places))))
        places = [row * stride + at for row in rows for at in places]
    return places[:count]


def _numbers(dtype: str, data: bytes, byteorder: str) -> Sequence[float]:
    order = "<" if byteorder == "little" else ">"
    if dtype == "bfloat16":  # the upper half of a float32
        halves = (data[i : i + 2] for i in range(0, len(data), 2))
        data = b"".join(b"\0\0" + half if order == "<" else half + b"\0\0" for half in halves)
    code = STRUCT_CODES.get(dtype, "f")
    return unpack(f"{order}{len(data) // calcsize(code)}{code}", data)


def scalar_value(reader: TensorReader, value: Any) -> Any:
    """Return a one-element tensor as a Python number; return anything else as it is."""
    if not isinstance(value, TensorRef) or value.numel != 1 or len(value.chunks) != 1:
        return value
    if not _admits(value.chunks[0]):
        return value
    code = STRUCT_CODES.get(value.dtype.name)
    if code is None:
        return value
    order = "<" if value.byteorder == "little" else ">"
    return Struct(order + code).unpack(reader.read(value.chunks[0].span))[0]

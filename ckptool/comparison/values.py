"""Bytes by which two tensors are compared, the jobs of comparing them, and the runs of a job.

The bytes are the values in C order, little-endian. Most tensors are stored so, and are read in
pieces. Others (strided, big-endian, conjugated, quantized) are brought into this form in memory, by
the thread that needs them. A quantized tensor is compared by the real values that it represents.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO

from ckptool.comparison.arrays import CODES, real_values
from ckptool.comparison.leaves import TensorLeaf
from ckptool.comparison.tolerances import Tolerance
from ckptool.dtypes import BY_NAME, DType
from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.tensors.blocks import in_order, value_bytes
from ckptool.tree.nodes import TensorRef

FLOAT64, UINT8 = BY_NAME["float64"], BY_NAME["uint8"]


class Values(NamedTuple):
    """Source of the bytes of one tensor."""

    ref: TensorRef
    reader: TensorReader
    dtype: DType  # of the elements as compared
    nbytes: int
    spans: tuple[ByteSpan, ...] | None  # joined, they are the bytes; None: made in memory

    @property
    def is_near(self) -> bool:
        """True if no byte is behind a URL."""
        return all(span.source.is_near for span in self.spans or ())

    def read(self, start: int, nbytes: int) -> bytes:
        """Return a run of the bytes, for a tensor that is stored in the compared form."""
        parts = [self.reader.read(span) for span in self._parts(start, nbytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, room: memoryview, start: int) -> memoryview:
        """Fill ``room`` from ``start`` and return it, for a tensor stored in the compared form."""
        filled = 0
        for span in self._parts(start, len(room)):
            part = room[filled : filled + span.nbytes]
            self.reader.fill(part, span)
            filled += span.nbytes
        return room

    def _parts(self, start: int, nbytes: int) -> Iterator[ByteSpan]:
        """Yield the spans of the files that hold a run of the bytes."""
        assert self.spans is not None
        for source, offset, length in self.spans:
            if start < length and nbytes:
                count = min(nbytes, length - start)
                yield ByteSpan(source, offset + start, count)
                nbytes -= count
            start = max(start - length, 0)

    def whole(self) -> bytes:
        """Return all of the bytes, made if need be."""
        if self.spans is not None:
            return self.read(0, self.nbytes)
        if self.dtype is FLOAT64 and self.ref.quantizer is not None:
            return real_values(self.reader, self.ref)
        made = BytesIO()  # a join would take twice the memory
        for block in value_bytes(self.reader, self.ref):
            made.write(block)
        made.write(packing(self.reader, self.ref))
        return made.getvalue()

    @property
    def places(self) -> tuple[object, ...] | None:
        """Key that is equal for the same bytes of the same sources; None: made in memory."""
        if self.spans is None:
            return None
        return tuple([(each.source.identity, each.offset, each.nbytes) for each in self.spans])


def values_of(held: TensorLeaf) -> Values | None:
    """Return the source of a tensor's bytes; None for a tensor without values (meta).

    Raises:
        DamagedError: the chunks of the tensor do not cover it.
    """
    ref, reader = held
    if not ref.chunks:
        return None
    spans = tuple([chunk.span for chunk in ref.chunks])
    if ref.quantizer is not None or ref.dtype.packed > 1:
        if ref.dtype.numpy is not None:
            return Values(ref, reader, FLOAT64, ref.numel * FLOAT64.itemsize, None)
        return Values(ref, reader, UINT8, ref.nbytes + len(packing(reader, ref)), None)
    if not (ref.is_stored_plainly or _lies_ready(ref)):
        return Values(ref, reader, ref.dtype, ref.nbytes, None)
    if sum(span.nbytes for span in spans) != ref.nbytes:
        raise DamagedError(f"the chunks of a tensor of shape {list(ref.shape)} do not cover it")
    return Values(ref, reader, ref.dtype, ref.nbytes, spans)


def _lies_ready(ref: TensorRef) -> bool:
    little = ref.byteorder == "little" or ref.dtype.itemsize == 1
    contiguous = all(chunk.is_contiguous for chunk in ref.chunks)
    return little and not ref.lazy and contiguous and in_order(ref)


def packing(reader: TensorReader, ref: TensorRef) -> bytes:
    """Return a hash of the parameters of a quantized tensor, and no bytes for any other."""
    if ref.quantizer is None:
        return b""
    scheme, scale, zero_point, axis = ref.quantizer
    parts = [
        b"".join(value_bytes(reader, part)) if isinstance(part, TensorRef) else repr(part).encode()
        for part in (scale, zero_point)
    ]
    return sha256(b"\0".join([scheme.encode(), repr(axis).encode(), *parts])).digest()


# ------------------------------------------------------------------------------------ jobs and runs


COUNTED = 1 << 14  # bytes of a side from which on pairs are counted
PIECE = 1 << 19  # bytes of a side that are counted at a time


class Job(NamedTuple):
    """Two tensors of one shape to compare."""

    a: Values
    b: Values
    rule: Tolerance

    @property
    def is_one_type(self) -> bool:
        """True if both have one dtype, so that equal bytes are equal values."""
        return self.a.dtype is self.b.dtype

    @property
    def lies_ready(self) -> bool:
        """True if any run of either side can be read by itself."""
        return self.a.spans is not None and self.b.spans is not None

    @property
    def width(self) -> int:
        """Bytes of one element, added over both sides."""
        return self.a.dtype.itemsize + self.b.dtype.itemsize

    @property
    def is_bytewise(self) -> bool:
        """True if the elements are compared by counting the pairs of their codes.

        There are 65,536 pairs, so it takes many elements to be worth it.
        """
        is_one_byte = self.is_one_type and self.a.dtype.itemsize == 1
        return is_one_byte and self.a.dtype.name not in CODES and self.a.nbytes >= COUNTED

    @property
    def form(self) -> str:
        """Dtype of the comparison: exact for integers, else wide enough for both sides."""
        kinds = {_kind(self.a.dtype), _kind(self.b.dtype)}
        if "complex" in kinds:
            return "complex128"
        unsigned = (self.a.dtype.name == "uint64") != (self.b.dtype.name == "uint64")
        return "int64" if kinds == {"int"} and not unsigned else "float64"

    @property
    def is_of_floats(self) -> bool:
        """True if the elements are floating-point numbers of one dtype, and are not counted."""
        return self.is_one_type and self.form == "float64" and not self.is_bytewise

    @property
    def is_one_sided(self) -> bool:
        """True if a tensor is compared with itself, for its norms."""
        return self.a is self.b

    @property
    def one_sided(self) -> Job:
        """A job of the norms of one side: of two with equal bytes, one that is near."""
        side = self.a if self.a.is_near or not self.b.is_near else self.b
        return self._replace(a=side, b=side)

    @property
    def sides(self) -> tuple[Values, ...]:
        """The sides that have to be read."""
        return (self.a,) if self.is_one_sided else (self.a, self.b)


class Run(NamedTuple):
    """Some elements of a job; ``stop`` is exclusive."""

    job: int
    start: int
    stop: int

    def pieces(self, elements: int) -> Iterator[Run]:
        """Yield runs of ``elements`` elements each; the last may be shorter."""
        for start in range(self.start, self.stop, elements):
            yield Run(self.job, start, min(start + elements, self.stop))


def _kind(dtype: DType) -> str:
    if dtype.name in CODES:
        return "int"
    return dtype.kind if dtype.is_floating else "int"


def place_of(values: Values, run: Run) -> tuple[int, int]:
    """Return the offset of a run's bytes among those of its tensor, and their number."""
    size = values.dtype.itemsize
    return run.start * size, (run.stop - run.start) * size


def bytes_of(values: Values, run: Run) -> bytes:
    """Return the bytes of a run, or of the whole tensor if they have to be made."""
    return values.whole() if values.spans is None else values.read(*place_of(values, run))


def pieces_of(job: Job, run: Run, nbytes: int = PIECE) -> Iterator[tuple[bytes, bytes]]:
    """Yield both sides of a long run of a type of one byte, a piece at a time."""
    for piece in run.pieces(nbytes) if job.lies_ready else (run,):
        yield bytes_of(job.a, piece), bytes_of(job.b, piece)

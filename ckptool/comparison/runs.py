"""What there is to compare, and the runs that it is cut into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ckptool.comparison.arrays import CODES
from ckptool.comparison.tolerances import Tolerance
from ckptool.comparison.values import Values
from ckptool.dtypes import DType

COUNTED = 1 << 14  # bytes of a side from which on pairs are counted
PIECE = 1 << 19  # bytes of a side that are counted at a time


class Job(NamedTuple):
    """Two tensors of one shape to compare."""

    a: Values
    b: Values
    rule: Tolerance

    @property
    def is_one_type(self) -> bool:
        """Whether equal bytes are equal values."""
        return self.a.dtype is self.b.dtype

    @property
    def lies_ready(self) -> bool:
        """Whether any run of either side can be read by itself."""
        return self.a.spans is not None and self.b.spans is not None

    @property
    def width(self) -> int:
        """Bytes of an element of both sides."""
        return self.a.dtype.itemsize + self.b.dtype.itemsize

    @property
    def is_bytewise(self) -> bool:
        """Whether the elements are compared by counting the pairs of their codes.

        There are 65,536, so it takes many elements to be worth it.
        """
        is_one_byte = self.is_one_type and self.a.dtype.itemsize == 1
        return is_one_byte and self.a.dtype.name not in CODES and self.a.nbytes >= COUNTED

    @property
    def form(self) -> str:
        """The type in which they are compared: exact for integers, else wide enough for both."""
        kinds = {_kind(self.a.dtype), _kind(self.b.dtype)}
        if "complex" in kinds:
            return "complex128"
        unsigned = (self.a.dtype.name == "uint64") != (self.b.dtype.name == "uint64")
        return "int64" if kinds == {"int"} and not unsigned else "float64"

    @property
    def is_of_floats(self) -> bool:
        """Whether the elements are floating-point numbers of one type, and are not counted."""
        return self.is_one_type and self.form == "float64" and not self.is_bytewise

    @property
    def is_one_sided(self) -> bool:
        """Whether a tensor is held against itself, for its norms."""
        return self.a is self.b

    @property
    def sides(self) -> tuple[Values, ...]:
        """What there is to read."""
        return (self.a,) if self.is_one_sided else (self.a, self.b)


class Run(NamedTuple):
    """Some elements of a job; ``stop`` is exclusive."""

    job: int
    start: int
    stop: int

    def pieces(self, elements: int) -> Iterator[Run]:
        """Cut into runs of so many elements, and what is left."""
        for start in range(self.start, self.stop, elements):
            yield Run(self.job, start, min(start + elements, self.stop))


def _kind(dtype: DType) -> str:
    if dtype.name in CODES:
        return "int"
    return dtype.kind if dtype.is_floating else "int"


def place_of(values: Values, run: Run) -> tuple[int, int]:
    """Where the bytes of a run begin among those of its tensor, and how many there are."""
    size = values.dtype.itemsize
    return run.start * size, (run.stop - run.start) * size


def bytes_of(values: Values, run: Run) -> bytes:
    """The bytes of a run; made, they are those of the whole tensor."""
    return values.whole() if values.spans is None else values.read(*place_of(values, run))


def pieces_of(job: Job, run: Run, nbytes: int = PIECE) -> Iterator[tuple[bytes, bytes]]:
    """The bytes of a long run of a type of one byte, of both sides, a piece at a time."""
    for piece in run.pieces(nbytes) if job.lies_ready else (run,):
        yield bytes_of(job.a, piece), bytes_of(job.b, piece)

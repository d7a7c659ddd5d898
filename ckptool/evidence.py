"""What a few values say: read only when needed, and never more than ``BUDGET`` bytes.

Names and addresses lie; values do not. Comparing stored bytes needs no arithmetic, so this runs
without numpy and costs a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from ckptool.formats.base import TensorReader
from ckptool.tree import TensorRef

BUDGET = 1 << 20  # bytes read from either side
PER_TENSOR = 1 << 15
MAX_TENSORS = 64

_SCALAR_CODES = {
    "float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h",
    "int8": "b", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "bool": "?",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many tensors of two tables were compared by bytes, and how many were equal."""

    compared: int
    equal: int
    nbytes: int  # read from each side

    @property
    def identical(self) -> bool:
        """Everything that was compared is equal, and something was."""
        return 0 < self.compared == self.equal


def sample_agreement(
    reader: TensorReader, pairs: Sequence[tuple[TensorRef, TensorRef]]
) -> Agreement:
    """Compare the beginnings of evenly spread pairs of floating-point tensors, byte for byte."""
    comparable = [(a, b) for a, b in pairs if _is_comparable(a, b)]
    step = max(1, -(-len(comparable) // MAX_TENSORS))
    compared = equal = nbytes = 0
    for one, other in comparable[::step]:
        count = min(PER_TENSOR, one.nbytes, BUDGET - nbytes)
        if count <= 0:
            break
        spans = one.chunks[0].span, other.chunks[0].span
        compared += 1
        equal += spans[0] == spans[1] or _equal(reader, *spans, count)
        nbytes += count
    return Agreement(compared, equal, nbytes)


def _is_comparable(one: TensorRef, other: TensorRef) -> bool:
    return (
        one.dtype is other.dtype
        and one.dtype.is_floating
        and one.nbytes > 0
        and one.is_stored_plainly
        and other.is_stored_plainly
    )


def _equal(reader: TensorReader, one: Any, other: Any, count: int) -> bool:
    return reader.read(one, 0, count) == reader.read(other, 0, count)


def scalar_value(reader: TensorReader, value: Any) -> Any:
    """A one-element tensor as a Python number; anything else as it is."""
    if not isinstance(value, TensorRef) or value.numel != 1 or len(value.chunks) != 1:
        return value
    code = _SCALAR_CODES.get(value.dtype.name)
    if code is None:
        return value
    order = "<" if value.byteorder == "little" else ">"
    return Struct(order + code).unpack(reader.read(value.chunks[0].span))[0]

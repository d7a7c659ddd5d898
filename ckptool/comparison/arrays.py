"""Arrays over bytes in numpy and torch: the operations that the two modules do not share."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from functools import cache, cached_property
from typing import Any

from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.tensors.blocks import blocks
from ckptool.tree.nodes import TensorRef

Array = Any
Namespace = Any
Buffer = Any  # bytes for numpy; for torch a flat tensor of uint8 on its device

BLOCK = 1 << 18  # elements; fewer would fit a cache, but threads would wait for each other
COMPARED = 1 << 18  # bytes

# Dtypes whose elements are codes without a numeric value here: only the unequal ones are counted.
CODES = {
    "float4_e2m1fn_x2": "uint8", "quint4x2": "uint8", "quint2x4": "uint8", "bits8": "uint8",
    "bits1x8": "uint8", "bits2x4": "uint8", "bits4x2": "uint8", "bits16": "uint16",
}  # fmt: skip


class NumpyArrays:
    """Arrays of numpy, on the CPU."""

    def __init__(self) -> None:
        self._own = threading.local()

    @cached_property
    def xp(self) -> Namespace:
        """The module numpy, imported for the first difference: equal files do not need it."""
        import numpy as np

        return np

    def view(self, data: Buffer, dtype: DType) -> Array:
        """Return the bytes as a flat array; numpy lacks complex32, which is copied as complex64."""
        if dtype.name == "complex32":
            return self.xp.frombuffer(data, "<f2").astype("f4").view("c8")
        return self.xp.frombuffer(data, _numpy_type(CODES.get(dtype.name) or dtype.numpy))

    def convert(self, array: Array, name: str, slot: int) -> Array:
        """Return a copy as float64, complex128 or int64, since kernels overwrite their arguments.

        ``slot`` names a buffer of this thread.
        """
        if name == "complex128":
            return array.astype(name)
        room = self.room(len(array), slot).view(name)
        self.xp.copyto(room, array, casting="unsafe")
        if name == "int64" and array.dtype == self.xp.uint64:
            room ^= -(1 << 63)
        return room

    def bits(self, data: Buffer, itemsize: int) -> Array:
        """Read the integers through a view, and widen them."""
        return self.xp.frombuffer(data, f"<i{itemsize}").astype("i8")

    def pairs(self, a: bytes, b: bytes) -> Array:
        """Return ``256 * a + b`` of each byte as int64, valid until this thread's next call."""
        xp = self.xp
        room = self.room(len(a), 0).view("i8")
        xp.copyto(room, xp.frombuffer(a, "u1"))
        xp.left_shift(room, 8, out=room)
        return xp.bitwise_or(room, xp.frombuffer(b, "u1"), out=room)

    def count_pairs(self, a: bytes, b: bytes) -> Array:
        """Count how often each of the 65,536 pairs occurs.

        A register holds two elements at a time. Those at even places come first: their order
        does not matter.
        """
        xp, half = self.xp, len(a) // 2
        room = self.room(len(a), 0).view("i8")
        one, other = (xp.frombuffer(data, "<u2", half) for data in (a, b))
        xp.copyto(room[:half], one << 8 | other & 0xFF)
        xp.copyto(room[half : 2 * half], one & 0xFF00 | other >> 8)
        if len(a) % 2:
            room[-1] = a[-1] << 8 | b[-1]
        return xp.bincount(room, minlength=1 << 16)

    def room(self, count: int, slot: int) -> Array:
        """Return a buffer that is kept: the system would give fresh memory page by page."""
        rooms = self._own.__dict__.setdefault("rooms", {})
        if slot not in rooms or len(rooms[slot]) < count:
            rooms[slot] = self.xp.empty(max(count, BLOCK))
        return rooms[slot][:count]

    def quietly(self) -> AbstractContextManager[Any]:
        """Return a context without numpy's warnings in this thread: infinities are expected."""
        silence: AbstractContextManager[Any] = self.xp.errstate(all="ignore")
        return silence


@cache
def _numpy_type(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(name if hasattr(np, name) else getattr(ml_dtypes, name))


class TorchArrays:
    """Arrays of torch, on one device."""

    def __init__(self, torch: Any, device: Any) -> None:
        self.xp: Namespace = torch
        self.device = device

    def knows(self, dtype: DType) -> bool:
        """Return whether this torch has the dtype: some came with 2.2, 2.3 and 2.7."""
        return hasattr(self.xp, CODES.get(dtype.name) or dtype.name)

    def view(self, data: Buffer, dtype: DType) -> Array:
        """Return a view of the bytes."""
        return data.view(getattr(self.xp, CODES.get(dtype.name) or dtype.name))

    def convert(self, array: Array, name: str, slot: int) -> Array:  # noqa: ARG002
        """Copy the array, even if its type stays; torch keeps freed memory by itself."""
        if name == "int64" and array.dtype is getattr(self.xp, "uint64", None):
            return array.view(self.xp.int64) ^ -(1 << 63)
        return array.to(getattr(self.xp, name), copy=True)

    def bits(self, data: Buffer, itemsize: int) -> Array:
        """Read the integers through a view, and widen them."""
        return data.view(getattr(self.xp, f"int{8 * itemsize}")).to(self.xp.int64)

    def count_pairs(self, a: Buffer, b: Buffer) -> Array:
        """Count the pairs as numpy does, but without waiting for the device as bincount would."""
        pairs = a.to(self.xp.int64).mul_(256).add_(b)
        return pairs.new_zeros(1 << 16).scatter_add_(0, pairs, pairs.new_ones(1).expand_as(pairs))

    def room(self, count: int, slot: int) -> Array:  # noqa: ARG002
        """Return an array that is not initialised."""
        return self.xp.empty(count, dtype=self.xp.float64, device=self.device)


Arrays = NumpyArrays | TorchArrays


def are_equal(a: Array, b: Array) -> bool:
    """Compare two numpy arrays of bytes, part by part: most that are unequal differ soon."""
    import numpy as np

    starts = range(0, len(a), COMPARED)
    return all(np.array_equal(a[i : i + COMPARED], b[i : i + COMPARED]) for i in starts)


def real_values(reader: TensorReader, ref: TensorRef) -> bytes:
    """Return a quantized tensor's real values, ``(value - zero_point) * scale``, as float64."""
    import numpy as np

    assert ref.quantizer is not None
    whole = np.concatenate([np.empty(0), *blocks(reader, ref)]).reshape(ref.shape)
    scale, zero_point = (
        _parameter(reader, part, ref) for part in (ref.quantizer.scale, ref.quantizer.zero_point)
    )
    values: bytes = ((whole - zero_point) * scale).tobytes()
    return values


def _parameter(reader: TensorReader, part: float | TensorRef, ref: TensorRef) -> Array:
    """Return a scale or zero point in a shape that broadcasts along its axis."""
    import numpy as np

    if not isinstance(part, TensorRef):
        return np.float64(part)
    assert ref.quantizer is not None
    values = np.concatenate([np.empty(0), *blocks(reader, part)])
    axis = ref.quantizer.axis or 0
    return values.reshape([-1 if i == axis else 1 for i in range(len(ref.shape))])

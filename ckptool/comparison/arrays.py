"""Bytes as arrays, for numpy and for torch: what the kernels cannot say in both.

The only module of the comparison that imports numpy or torch, when a first difference has to be
measured: equal files need neither.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Protocol

from ckptool.dtypes import DType
from ckptool.errors import UnsupportedError, UsageError
from ckptool.formats.base import TensorReader
from ckptool.numerics import blocks
from ckptool.tree import TensorRef

Array = Any

# Types whose elements can be counted and told apart, but mean no numbers here.
CODES = {
    "float4_e2m1fn_x2": "uint8", "quint4x2": "uint8", "quint2x4": "uint8", "bits8": "uint8",
    "bits1x8": "uint8", "bits2x4": "uint8", "bits4x2": "uint8", "bits16": "uint16",
}  # fmt: skip


STAGED = 4  # buffers of a thread: both sides, and both again as bits


class Arrays(Protocol):
    """What a backend gives the engine."""

    xp: Any  # the namespace of the kernels
    block: int  # elements in one run of a kernel

    def view(self, data: bytes, dtype: DType) -> Array:
        """The bytes as a flat array of ``dtype``."""

    def convert(self, array: Array, name: str, slot: int) -> Array:
        """Another type, float64, complex128 or int64, in a slot of this thread's room."""

    def bits(self, data: bytes, itemsize: int) -> Array:
        """The bytes as signed integers, as int64."""

    def pairs(self, a: bytes, b: bytes) -> Array:
        """``256 * a + b`` of each byte, as int64; valid until the next call in this thread."""

    def count_pairs(self, a: bytes, b: bytes) -> Array:
        """How often each of the 65,536 pairs occurs."""

    def room(self, count: int, slot: int) -> Array:
        """An array of float64 to be overwritten; the same memory each time in a thread."""

    def quietly(self) -> AbstractContextManager[Any]:
        """Arithmetic in which infinities are no cause for warnings."""


class NumpyArrays:
    """On the processor."""

    block = 1 << 18

    def __init__(self) -> None:
        import numpy as np

        self.xp: Any = np
        self._own = threading.local()

    def view(self, data: bytes, dtype: DType) -> Array:
        """The bytes, not copied."""
        if dtype.name == "complex32":
            return self.xp.frombuffer(data, "<f2").astype("f4").view("c8")
        return self.xp.frombuffer(data, _numpy_type(CODES.get(dtype.name) or dtype.numpy))

    def convert(self, array: Array, name: str, slot: int) -> Array:
        """Copied even when the type stays: kernels overwrite."""
        if name == "complex128":
            return array.astype(name)
        room = self.room(len(array), slot).view(name)
        self.xp.copyto(room, array, casting="unsafe")
        if name == "int64" and array.dtype == self.xp.uint64:
            room ^= -(1 << 63)
        return room

    def bits(self, data: bytes, itemsize: int) -> Array:
        """By a view."""
        return self.xp.frombuffer(data, f"<i{itemsize}").astype("i8")

    def pairs(self, a: bytes, b: bytes) -> Array:
        """In place, step by step."""
        xp = self.xp
        room = self.room(len(a), 0).view("i8")
        xp.copyto(room, xp.frombuffer(a, "u1"))
        xp.left_shift(room, 8, out=room)
        return xp.bitwise_or(room, xp.frombuffer(b, "u1"), out=room)

    def count_pairs(self, a: bytes, b: bytes) -> Array:
        """Two at a time, in registers: elements at even places first, whose order is no matter."""
        xp, half = self.xp, len(a) // 2
        room = self.room(len(a), 0).view("i8")
        one, other = (xp.frombuffer(data, "<u2", half) for data in (a, b))
        xp.copyto(room[:half], one << 8 | other & 0xFF)
        xp.copyto(room[half : 2 * half], one & 0xFF00 | other >> 8)
        if len(a) % 2:
            room[-1] = a[-1] << 8 | b[-1]
        return xp.bincount(room, minlength=1 << 16)

    def room(self, count: int, slot: int) -> Array:
        """Fresh memory would have to be given by the system, page by page."""
        rooms = self._own.__dict__.setdefault("rooms", {})
        if slot not in rooms or len(rooms[slot]) < count:
            rooms[slot] = self.xp.empty(max(count, self.block))
        return rooms[slot][:count]

    def quietly(self) -> AbstractContextManager[Any]:
        """Of this thread."""
        silence: AbstractContextManager[Any] = self.xp.errstate(all="ignore")
        return silence


@cache
def _numpy_type(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(name if hasattr(np, name) else getattr(ml_dtypes, name))


class TorchArrays:
    """On a device of torch.

    Raises:
        UnsupportedError: there is no torch, or no such device.
    """

    def __init__(self, device: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise UnsupportedError(
                f"--device {device} needs torch, which is not installed",
                hint="pip install 'ckptool[torch]'; without --device the processor compares",
            ) from error
        self.xp, self.device = torch, _device(torch, device)
        self._own = threading.local()
        self.block = 1 << 22 if self.device.type == "cuda" else 1 << 16

    def view(self, data: bytes, dtype: DType) -> Array:
        """Copied to the device, from pinned memory where that is faster."""
        kind = getattr(self.xp, CODES.get(dtype.name) or dtype.name)
        return self._moved(data).view(kind)

    def _moved(self, data: bytes) -> Array:
        """By way of memory that the device can fetch from by itself, kept by each thread.

        The copy goes on after this returns, so before the memory is written to again it is waited
        for. Filling it goes through numpy, which lets the other threads run meanwhile.
        """
        if not hasattr(self._own, "staging"):
            self._own.staging, self._own.turn = {}, 0
        self._own.turn = (self._own.turn + 1) % STAGED
        staging, copied = self._own.staging.get(self._own.turn, (None, None))
        if copied is not None:
            copied.synchronize()
        on_cuda = self.device.type == "cuda"
        if staging is None or len(staging) < len(data):
            staging = self.xp.empty(len(data), dtype=self.xp.uint8, pin_memory=on_cuda)
        self._fill(staging, data)
        moved = staging[: len(data)].to(self.device, non_blocking=True, copy=True)
        self._own.staging[self._own.turn] = (staging, self._event() if on_cuda else None)
        return moved

    @staticmethod
    def _fill(staging: Array, data: bytes) -> None:
        import numpy as np

        np.copyto(staging.numpy()[: len(data)], np.frombuffer(data, np.uint8))

    def _event(self) -> Any:
        """What has happened when everything asked of the device so far is done."""
        event = self.xp.cuda.Event()
        event.record(self.xp.cuda.current_stream(self.device))
        return event

    def convert(self, array: Array, name: str, slot: int) -> Array:  # noqa: ARG002
        """Copied even when the type stays; torch keeps freed memory by itself."""
        if array.dtype is self.xp.uint64 and name == "int64":
            return array.view(self.xp.int64) ^ -(1 << 63)
        return array.to(getattr(self.xp, name), copy=True)

    def bits(self, data: bytes, itemsize: int) -> Array:
        """By a view."""
        kind = getattr(self.xp, f"int{8 * itemsize}")
        return self._moved(data).view(kind).to(self.xp.int64)

    def pairs(self, a: bytes, b: bytes) -> Array:
        """Of the codes as int64."""
        one, other = (self._moved(data).to(self.xp.int64) for data in (a, b))
        return one * 256 + other

    def count_pairs(self, a: bytes, b: bytes) -> Array:
        """In whatever order the device likes."""
        return self.xp.bincount(self.pairs(a, b), minlength=1 << 16)

    def room(self, count: int, slot: int) -> Array:  # noqa: ARG002
        """Not initialised."""
        return self.xp.empty(count, dtype=self.xp.float64, device=self.device)

    def quietly(self) -> AbstractContextManager[Any]:
        """Torch never warns."""
        return nullcontext()


def _device(torch: Any, text: str) -> Any:
    kind, _, index = text.partition(":")
    if kind not in {"cuda", "cpu"} or (index and not index.isdigit()):
        raise UsageError(f"a device is cpu, cuda or cuda:N, not {text!r}")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= count:
        raise UnsupportedError(
            f"torch {torch.__version__} sees {count or 'no'} CUDA devices, so there is no {text}",
            hint="install a torch built for CUDA and check nvidia-smi; --device cpu always works",
        )
    return torch.device(text)


def real_values(reader: TensorReader, ref: TensorRef) -> bytes:
    """What a quantized tensor stands for, ``(value - zero_point) * scale``, as float64."""
    import numpy as np

    assert ref.quantizer is not None
    whole = np.concatenate([np.empty(0), *blocks(reader, ref)]).reshape(ref.shape)
    scale, zero_point = (
        _parameter(reader, part, ref) for part in (ref.quantizer.scale, ref.quantizer.zero_point)
    )
    values: bytes = ((whole - zero_point) * scale).tobytes()
    return values


def _parameter(reader: TensorReader, part: float | TensorRef, ref: TensorRef) -> Array:
    """A scale or zero point, so that it broadcasts along its axis."""
    import numpy as np

    if not isinstance(part, TensorRef):
        return np.float64(part)
    assert ref.quantizer is not None
    values = np.concatenate([np.empty(0), *blocks(reader, part)])
    axis = ref.quantizer.axis or 0
    return values.reshape([-1 if i == axis else 1 for i in range(len(ref.shape))])


def arrays_on(device: str) -> Arrays:
    """The backend of a device as typed: numpy for ``cpu``."""
    if device == "cpu":
        return NumpyArrays()
    return TorchArrays(device)

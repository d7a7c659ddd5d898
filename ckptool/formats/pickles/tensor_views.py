"""Tensors as views of storages: sizes, dtypes and storages as a pickle states them, checked."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS, UINT8, DType
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.records import replace
from ckptool.sources.base import ByteSpan
from ckptool.tree.geometry import extent, stored_nbytes
from ckptool.tree.nodes import Chunk, GlobalRef, Opaque, StorageRef, TensorRef

MAX_INT64 = (1 << 63) - 1
SMALL_SIZE = 1 << 20  # the product of three such sizes is far from overflowing


def sizes_of(values: Any) -> tuple[int, ...]:
    """Return a shape or strides, pickled as any sequence, as a tuple of non-negative integers."""
    if isinstance(values, Opaque):
        values = values.args[0] if len(values.args) == 1 else values.elements
    if not isinstance(values, (tuple, list)):
        raise DamagedError(f"sizes are {kind_of(values)} instead of a row of integers")
    sizes = tuple(values)
    for size in sizes:  # a loop takes half the time of all(); this runs four times a tensor
        if type(size) is not int or size < 0:
            shown = size if type(size) is int else kind_of(size)
            raise DamagedError(f"sizes must be integers of at least 0, not {shown}")
    return sizes


def check_countable(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Refuse sizes whose product overflows torch's 64 bits: a stride of 0 makes any of them fit."""
    if prod(size or 1 for size in shape) > MAX_INT64 or max(strides, default=0) > MAX_INT64:
        raise DamagedError(f"a tensor of shape {list(shape)} has more elements than can be counted")


def tensor_view(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: DType | None = None, **more: Any
) -> TensorRef:
    """Return a tensor that views ``storage`` from element ``offset`` on."""
    if not isinstance(storage, StorageRef):
        raise DamagedError(f"a tensor is built on {kind_of(storage)} instead of a storage")
    if dtype is None:
        dtype = storage.dtype
    elif storage.byteorder == "big" and swapped_bytes(dtype) != swapped_bytes(storage.dtype):
        raise UnsupportedError(
            f"a {dtype} tensor views big-endian {storage.dtype} values, whose bytes torch swaps by "
            "the size of these; torch.save writes no such view"
        )
    shape, strides = sizes_of(shape), sizes_of(strides)
    if len(shape) != len(strides):
        raise DamagedError(f"a tensor has {len(shape)} sizes but {len(strides)} strides")
    if shape and (len(shape) > 3 or max(shape) > SMALL_SIZE or max(strides) > SMALL_SIZE):
        check_countable(shape, strides)
    (offset,) = sizes_of((offset,))
    if dtype.kind == "quantized" and dtype.packed > 1:  # torch has no strided views of these
        start, nbytes = offset // dtype.packed, stored_nbytes(dtype, shape)
    else:
        start, nbytes = offset * dtype.itemsize, extent(shape, strides) * dtype.itemsize
    if storage.span is None:
        return TensorRef(dtype, shape, (), device=storage.device, **more)
    if nbytes and start + nbytes > storage.span.nbytes:
        raise DamagedError(
            f"a {dtype} tensor of shape {list(shape)} needs bytes {start} to {start + nbytes} "
            f"of its storage, which has {storage.span.nbytes}"
        )
    span = ByteSpan(storage.span.source, storage.span.offset + start, nbytes)
    chunk = Chunk(span, (0,) * len(shape), shape, strides)
    return TensorRef(
        dtype, shape, (chunk,), device=storage.device, byteorder=storage.byteorder, **more
    )


def swapped_bytes(dtype: DType) -> int:
    """Return the bytes that torch swaps at once: of a complex number each part on its own."""
    return dtype.itemsize // 2 if dtype.kind == "complex" else dtype.itemsize


def last_name(value: Any) -> str:
    """Return ``strided`` for the global ``torch.strided``, as any version of torch wrote it."""
    if isinstance(value, GlobalRef):
        return value.name
    if isinstance(value, Opaque) and value.args:  # torch.serialization._get_layout('torch.strided')
        value = value.args[0]
    return as_text(value).rpartition(".")[2]


def dtype_of(value: Any) -> DType:
    """Return the dtype that a pickled ``torch.dtype`` names.

    Raises:
        DamagedError: the dtype is unknown.
    """
    name = last_name(value)
    if name not in BY_NAME:
        raise DamagedError(f"the dtype {name!r:.60} is not known")
    return BY_NAME[name]


def kind_of(value: Any) -> str:
    """Return the kind of a value, for messages."""
    return value.qualname if isinstance(value, (Opaque, GlobalRef)) else f"a {type(value).__name__}"


Call = Callable[..., Any]


def storage_dtype(cls: Any) -> DType:
    """Return the dtype of a storage class: ``torch.FloatStorage``, ``torch.cuda.HalfStorage``."""
    name = cls.name if isinstance(cls, GlobalRef) else as_text(cls)
    if name in BY_STORAGE_CLASS:
        return BY_STORAGE_CLASS[name]
    if name in {"UntypedStorage", "_UntypedStorage"}:
        return UINT8
    raise DamagedError(f"the storage class {name!r:.60} is not known")


def storage_view(storage: StorageRef, view: Any, dtype: DType | None = None) -> StorageRef:
    """Return the part of a storage for ``view`` (legacy files): (key, offset, size) in elements.

    The elements are those of ``dtype``, by default those of the storage.
    """
    _key, offset, size = view
    dtype = dtype or storage.dtype
    start, nbytes = (n * dtype.itemsize for n in sizes_of((offset, size)))
    span = storage.span
    if span is None:
        return replace(storage, dtype=dtype)
    if start + nbytes > span.nbytes:
        raise DamagedError(f"a view of {nbytes} bytes at {start} in a storage of {span.nbytes}")
    return replace(storage, dtype=dtype, span=ByteSpan(span.source, span.offset + start, nbytes))


def as_text(value: Any) -> str:
    """Return a name from text, Python 2 bytes or an int; others may take unbounded time."""
    if type(value) is str:
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if type(value) is int:
        return str(value)
    raise DamagedError(f"a name is expected, not {kind_of(value)}")

"""Shapes, strides and runs of bytes: arithmetic on plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, TypeGuard, TypeVar

from ckptool.dtypes import DType
from ckptool.errors import UnsupportedError

Shape = TypeVar("Shape", tuple[int, ...], list[int])

# --------------------------------------------------------------------------------------- geometry


@lru_cache(maxsize=1 << 10)  # many tensors have one shape
def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a C-ordered block in elements; as in torch, empty dimensions are 1."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return the number of elements from the first to the last that a strided view touches."""
    if 0 in shape:
        return 0
    last = 0
    for size, stride in zip(shape, strides, strict=True):
        last += (size - 1) * stride
    return last + 1


def stored_nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Return the bytes of a contiguous block; quantized sub-byte dtypes pad rows to whole bytes."""
    if dtype.kind == "quantized" and dtype.packed > 1 and shape:
        return prod(shape[:-1]) * -(-shape[-1] // dtype.packed)
    return prod(shape) * dtype.itemsize


def joined_runs(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the runs (from, to) in order, with overlapping and adjacent runs joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def joined_length(runs: Iterable[tuple[int, int]]) -> int:
    """Return the length of all runs (from, to), where they overlap once."""
    length = free = 0
    for start, end in sorted(runs):
        if end > free:
            length += end - max(start, free)
            free = end
    return length


MAX_DIMENSIONS = 64  # of an array of numpy
MAX_SIZE = 2**63 - 1  # of a tensor of torch


def are_sizes(values: Any) -> TypeGuard[Sequence[int]]:
    """Return whether a value in a file is a shape of a tensor, or a place in one."""
    is_row = isinstance(values, (list, tuple)) and len(values) <= MAX_DIMENSIONS
    return is_row and all(type(size) is int and 0 <= size <= MAX_SIZE for size in values)


def numpy_shape(shape: Shape) -> Shape:
    """Return the shape of an array, if numpy has so many dimensions; torch has any number.

    Raises:
        UnsupportedError: it has more.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise UnsupportedError(
            f"the values of a tensor of {len(shape)} dimensions cannot be read: numpy has at most "
            f"{MAX_DIMENSIONS}",
            hint="drop its dimensions of size 1 and save it again",
        )
    return shape

"""Shapes, strides and runs of bytes: arithmetic on plain numbers."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from ckptool.dtypes import DType

# --------------------------------------------------------------------------------------- geometry


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

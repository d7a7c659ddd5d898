"""Tensors of a checkpoint as torch tensors, memory-mapped where the file allows it.

The only module that imports torch, and only when called. A mapping is private (copy-on-write):
writing to a loaded tensor changes memory, never the file. Values that do not lie ready in the file
(big-endian, conjugated, misaligned for their type) are read into memory instead.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptool.errors import UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.numerics import value_bytes
from ckptool.tree import Blob, TensorRef

if TYPE_CHECKING:
    import torch


def as_torch(tensors: Mapping[str, TensorRef], reader: TensorReader) -> dict[str, torch.Tensor]:
    """The tensors by name, on the CPU; tied ones share memory, strides are kept.

    Raises:
        UnsupportedError: a tensor without plain stored values, a type that this torch lacks, or no
            torch at all.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "tensors of torch need torch, which is not installed",
            hint="pip install 'ckptool[torch]'; ckptool extract-ema works without it",
        ) from error
    maps: dict[Path, mmap.mmap] = {}
    return {name: _tensor(name, ref, reader, maps) for name, ref in tensors.items()}


def _tensor(
    name: str, ref: TensorRef, reader: TensorReader, maps: dict[Path, mmap.mmap]
) -> torch.Tensor:
    import torch

    dtype = getattr(torch, ref.dtype.name, None)
    if dtype is None or len(ref.chunks) != 1 or ref.quantizer is not None:
        raise UnsupportedError(f"a {ref.dtype} tensor of this kind cannot be mapped", address=name)
    chunk = ref.chunks[0]
    if not chunk.span.nbytes:
        return torch.empty(ref.shape, dtype=dtype)
    if not _is_mappable(ref):
        data = bytearray(b"".join(value_bytes(reader, ref)))
        return torch.frombuffer(data, dtype=dtype).reshape(ref.shape)
    buffer = _mapping(reader, chunk.span.source, maps)
    count = chunk.span.nbytes // ref.dtype.itemsize
    flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=chunk.span.offset)
    return flat.as_strided(chunk.shape, chunk.strides)


def _is_mappable(ref: TensorRef) -> bool:
    span = ref.chunks[0].span
    little = ref.byteorder == "little" or ref.dtype.itemsize == 1
    aligned = span.offset % ref.dtype.itemsize == 0
    return little and aligned and not ref.lazy and not isinstance(span.source, Blob)


def _mapping(reader: TensorReader, source: Any, maps: dict[Path, mmap.mmap]) -> mmap.mmap:
    if source not in maps:
        maps[source] = mmap.mmap(reader.file(source).fd, 0, access=mmap.ACCESS_COPY)
    return maps[source]

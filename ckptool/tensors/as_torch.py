"""Tensors of a checkpoint as torch tensors, memory-mapped where the file allows it.

Only this module imports torch, and only when it is called. A mapping is private (copy-on-write):
writing to a loaded tensor changes memory, never the file. Values that cannot be used as they are
stored (big-endian, conjugated, misaligned for their dtype, in several parts) are read into memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ckptool.errors import UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.sources.base import Source
from ckptool.tensors.blocks import value_bytes
from ckptool.tree.nodes import TensorRef

if TYPE_CHECKING:
    import torch


def as_torch(tensors: Mapping[str, TensorRef], reader: TensorReader) -> dict[str, torch.Tensor]:
    """Return the tensors by name, on the CPU; tied ones share memory, strides are kept.

    Raises:
        UnsupportedError: a tensor without plain stored values, a dtype that this torch lacks, or no
            torch at all.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "tensors of torch need torch, which is not installed",
            hint="pip install 'ckptool[torch]'; ckptool extract-ema works without it",
        ) from error
    maps: dict[Source, mmap.mmap] = {}
    return {name: _tensor(name, ref, reader, maps) for name, ref in tensors.items()}


def _tensor(
    name: str, ref: TensorRef, reader: TensorReader, maps: dict[Source, mmap.mmap]
) -> torch.Tensor:
    import torch

    dtype = getattr(torch, ref.dtype.name, None)
    # With a quantized dtype torch.frombuffer makes a tensor that ends the process when it is used.
    if dtype is None or not ref.chunks or ref.dtype.kind == "quantized":
        raise UnsupportedError(f"a {ref.dtype} tensor of this kind cannot be mapped", address=name)
    chunk = ref.chunks[0]
    if not ref.numel:
        return torch.empty(ref.shape, dtype=dtype)
    descriptor = chunk.span.source.fileno()
    if descriptor is None or not _is_mappable(ref):
        data = bytearray(b"".join(value_bytes(reader, ref)))
        return torch.frombuffer(data, dtype=dtype).reshape(ref.shape)
    if chunk.span.source not in maps:
        maps[chunk.span.source] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    buffer = maps[chunk.span.source]
    count = chunk.span.nbytes // ref.dtype.itemsize
    flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=chunk.span.offset)
    return flat.as_strided(chunk.shape, chunk.strides)


def _is_mappable(ref: TensorRef) -> bool:
    """Return whether the values can be used where they lie; several chunks are assembled."""
    span = ref.chunks[0].span
    little = ref.byteorder == "little" or ref.dtype.itemsize == 1
    aligned = span.offset % ref.dtype.itemsize == 0
    return len(ref.chunks) == 1 and little and aligned and not ref.lazy

"""Models and averages for one test each, as torch writes them and as tables in memory.

Averages here are near the model, as real ones are: a relative distance of a few hundredths. Every
tensor has values of its own, so that a wrong pair never goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckptool.dtypes import BY_NAME
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.plain_pickle import PlainPickle
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Chunk, TensorRef

Weights = dict[str, Tensor]

SHAPES = {
    "stem.weight": (4, 3),
    "stem.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "norm.running_mean": (4,),
    "norm.running_var": (4,),
    "blocks.0.weight": (4, 4),
    "blocks.0.bias": (4,),
    "blocks.1.weight": (4, 4),
    "blocks.1.bias": (4,),
    "head.weight": (2, 4),
    "head.bias": (2,),
}
BUFFERS = ("norm.running_mean", "norm.running_var")


def drawn(shapes: Mapping[str, tuple[int, ...]] = SHAPES, seed: int = 0) -> Weights:
    """Weights of these names and shapes; another seed is another model."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def near(model: Mapping[str, Tensor], seed: int = 1, noise: float = 0.05) -> Weights:
    """An average of the model: every floating-point tensor a little off; integers as they are."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {name: _moved(tensor, noise, generator) for name, tensor in model.items()}


def _moved(tensor: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    step = torch.randn(tensor.shape, generator=generator) * (1 + tensor.float().abs().mean())
    return (tensor.float() + noise * step).to(tensor.dtype)


def under(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """The weights with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def without(weights: Mapping[str, Tensor], *names: str) -> Weights:
    """The weights but for those whose names contain one of the words."""
    return {k: v for k, v in weights.items() if not any(name in k for name in names)}


def save(path: Path, content: Any) -> Path:
    """A file of ``torch.save``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


# ---------------------------------------------------------------------------------------- in memory


def ref(*shape: int, dtype: str = "float32") -> TensorRef:
    """A tensor of this shape that lies nowhere: for what looks at names and shapes only."""
    return TensorRef(BY_NAME[dtype], shape, ())


def refs(**shapes: tuple[int, ...]) -> dict[str, TensorRef]:
    """Tensors that lie nowhere; ``__`` in a name stands for a dot."""
    return {name.replace("__", "."): ref(*shape) for name, shape in shapes.items()}


def stored(tensor: Tensor) -> TensorRef:
    """A tensor whose bytes lie in memory."""
    tensor = tensor.detach().contiguous()
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    shape = tuple(tensor.shape)
    span = ByteSpan(Memory(data), 0, len(data))
    chunk = Chunk(span, (0,) * len(shape), shape, contiguous_strides(shape))
    return TensorRef(BY_NAME[str(tensor.dtype).removeprefix("torch.")], shape, (chunk,))


def tree_of(content: Any, seen: dict[int, Any] | None = None) -> Any:
    """``content`` with references in the place of tensors; what is shared stays shared."""
    seen = {} if seen is None else seen
    if id(content) not in seen:
        seen[id(content)] = _node_of(content, seen)
    return seen[id(content)]


def _node_of(content: Any, seen: dict[int, Any]) -> Any:
    if isinstance(content, Tensor):
        return stored(content)
    if isinstance(content, dict):
        return {key: tree_of(value, seen) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(tree_of(value, seen) for value in content)
    return content


class CountingReader(TensorReader):
    """Remembers what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def read(self, span: ByteSpan, start: int = 0, nbytes: int | None = None) -> bytes:
        data = super().read(span, start, nbytes)
        self.sizes.append(len(data))
        return data


def in_memory(content: Any, path: str = "/nowhere/last.pt") -> Checkpoint:
    """A checkpoint that was never written; its reader counts."""
    return Checkpoint(Path(path), PlainPickle(), 0, tree_of(content), CountingReader())

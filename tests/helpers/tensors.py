"""Equality of tensors that torch loads, to the last bit; ``likeness`` compares all depths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from helpers.judge import tensor_bytes


def assert_same_tensor(found: Tensor, wanted: Tensor, at: str = "") -> None:
    """Equal in type, shape and every bit; strides may differ."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), at
    assert tensor_bytes(found.resolve_conj()) == tensor_bytes(wanted.resolve_conj()), at


def assert_same_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """The same names, and equal tensors under them."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert_same_tensor(found[name], tensor, name)


def storage_of(tensor: Tensor) -> int:
    """The same number for tensors that share memory."""
    return tensor.untyped_storage().data_ptr()


def load_noted(path: Path) -> dict[str, Tensor]:
    """A safetensors file, with the names that its metadata says are other ones."""
    tensors = load_file(path)
    with safe_open(path, "pt") as opened:
        noted = {name: kept for name, kept in opened.metadata().items() if kept in tensors}
    return tensors | {name: tensors[kept] for name, kept in noted.items()}


def truth(checkpoint: Path, which: str) -> dict[str, Tensor]:
    """The live weights when ``checkpoint`` was saved; ``which`` is online or averaged."""
    return load_file(checkpoint.with_suffix(f".{which}.safetensors"))


def load(path: Path) -> object:
    """What torch makes of a file of ours or of the fixtures."""
    return torch.load(path, weights_only=False)

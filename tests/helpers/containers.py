"""Every container that promotion patches, a row each: how the other party writes and reads it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import kinds
from helpers.absent import STUBS
from helpers.systems import load_script

MODEL, AVERAGE = "state_dict", "ema_state_dict"
GROUPS = ("model.", "ema.")  # of a safetensors file with both
NEW_TYPES = frozenset({kinds.float8, kinds.float8_with_float32_average})
NEVER_IN_TAR = frozenset(  # torch 0.1 did not have these
    {
        kinds.bfloat16_with_float32_average, kinds.complex_values, kinds.conjugated_average,
        kinds.channels_last_cast, kinds.tied_and_cast, kinds.small, kinds.plain,
        kinds.without_buffers, kinds.counters_as_floats,
    }
)  # fmt: skip
REORDERED = frozenset(  # a safetensors file has C order, and no two names for one tensor
    {
        kinds.tied, kinds.tied_average_has_one, kinds.tied_and_cast, kinds.views_with_gaps,
        kinds.channels_last, kinds.channels_last_cast, kinds.transposed, kinds.flat_storages,
        kinds.one_storage, kinds.conjugated_average, kinds.complex_values,
    }
)  # fmt: skip

Content = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """A row of ``CONTAINERS``."""

    name: str
    suffix: str
    write: Callable[[Path, Content], None]
    load: Callable[[Path], Content]  # with stubs for the classes that are absent
    beyond: frozenset[Callable] = field(default_factory=frozenset)  # kinds that it cannot hold
    holds_objects: bool = True

    def __str__(self) -> str:
        return self.name


def _write_torch(path: Path, content: Content, *, zipped: bool) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def _load_torch(path: Path) -> Content:
    return torch.load(path, weights_only=False, pickle_module=STUBS)


def _write_pickle(path: Path, content: Content, *, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def _load_pickle(path: Path) -> Content:
    with path.open("rb") as file:
        return STUBS.load(file)


def _write_tar(path: Path, content: Content) -> None:
    script = load_script("make_torch_tar")
    script.write_tar(path, content, script.make_view())


def _write_groups(path: Path, content: Content) -> None:
    parts = zip(GROUPS, (content[MODEL], content[AVERAGE]), strict=True)
    tensors = {prefix + name: t for prefix, part in parts for name, t in part.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _load_groups(path: Path) -> Content:
    tensors = dict(sorted(load_file(path).items()))  # by name: those without bytes have no order
    with safe_open(path, "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "ckptool"}
    model, average = (
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for prefix in GROUPS
    )
    return {MODEL: model, AVERAGE: average, "metadata": metadata}


ZIP = Container("zip", ".pt", partial(_write_torch, zipped=True), _load_torch)
LEGACY = Container("legacy", ".pt", partial(_write_torch, zipped=False), _load_torch, NEW_TYPES)
TAR = Container("tar", ".pt", _write_tar, _load_torch, NEW_TYPES | NEVER_IN_TAR)
PICKLE = Container("pickle", ".pkl", partial(_write_pickle, protocol=4), _load_pickle, NEW_TYPES)
SAFETENSORS = Container(
    "safetensors", ".safetensors", _write_groups, _load_groups, REORDERED, holds_objects=False
)
CONTAINERS = (ZIP, LEGACY, TAR, PICKLE, SAFETENSORS)

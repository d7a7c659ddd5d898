"""Weights cut into several files, with an index that says which tensor is in which.

Layout, as Hugging Face libraries write it::

    model.safetensors.index.json      {"metadata": {"total_size": 289…},
                                       "weight_map": {"name": "model-00001-of-00002.safetensors"}}
    model-00001-of-00002.safetensors  the shards, beside the index; for torch's files
    …                                 pytorch_model.bin.index.json and .bin

Rules: a shard's file is a name in the index's folder, never a path out of it. A name comes once,
and is in the shard that the map gives; what a shard holds beyond the map is kept too, since loaders
take shards whole. A folder with one index is its checkpoint; other checkpoints in the folder
(``optimizer.pt``) stand beside the weights under their file names.

Source: huggingface_hub ``serialization/_torch.py``, transformers ``modeling_utils.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.formats.safetensors_file import noted_ties
from ckptool.tree import Tree

INDEX = ".index.json"
WEIGHT_MAP = re.compile(rb'\s*\{.*"weight_map"\s*:', re.DOTALL)
LONG_METADATA = re.compile(rb'\s*\{\s*"metadata"\s*:\s*\{[^}]*\Z')  # goes on behind the head
SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt"})
MAX_INDEX = 256 << 20  # bytes; of 100,000 tensors it has about ten million
MODEL = "model"  # the weights' key, where other checkpoints lie beside them

OpenFile = Callable[[Path], Checkpoint]


class ShardIndex:
    """The index as an operand; see the module's docstring."""

    name = "sharded"

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    def matches(self, head: bytes) -> bool:
        """A JSON object with a ``weight_map``, maybe behind many notes of tied names."""
        return any(pattern.match(head) for pattern in (WEIGHT_MAP, LONG_METADATA))

    def open(self, file: SourceFile) -> Checkpoint:
        """The tensors of all shards; reads the index and the header of each."""
        weight_map, metadata = _read_index(file)
        folder = file.path.parent
        with ExitStack() as opened:
            shards = {
                name: opened.enter_context(_opened(self._open_file, folder / name, file.path))
                for name in dict.fromkeys(weight_map.values())
            }
            tree = _joined(weight_map, shards)
            tree |= {name: tree[kept] for name, kept in noted_ties(_texts(metadata), tree)}
            opened.pop_all()  # the checkpoint's reader owns the files now
        parts = shards.values()
        return Checkpoint(
            path=file.path,
            format_name=self.name,
            size_bytes=sum(part.size_bytes for part in parts),
            tree=tree,
            reader=TensorReader(file, *(each for part in parts for each in part.reader.opened)),
            globals_named=tuple(named for part in parts for named in part.globals_named),
            metadata=metadata,
        )


class ShardFolder:
    """A folder with one index."""

    name = "sharded"

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    def matches(self, folder: Path) -> bool:
        """Exactly one index of shards, and at least one shard."""
        indices = _indices(folder)
        return len(indices) == 1 and any(p.suffix in SUFFIXES for p in _files(folder))

    def open(self, folder: Path) -> Checkpoint:
        """The weights; with other checkpoints in the folder, one tree of all of them."""
        (index,) = _indices(folder)
        with ExitStack() as opened:
            weights = opened.enter_context(self._open_file(index))
            shards = {file.path for file in weights.reader.opened}
            others = {
                path.name: opened.enter_context(_opened(self._open_file, path, path))
                for path in _files(folder)
                if path.suffix in SUFFIXES and path not in shards
            }
            opened.pop_all()
        parts = (weights, *others.values())
        rest: dict[str, Tree] = {name: part.tree for name, part in others.items()}
        return Checkpoint(
            path=folder,
            format_name=self.name,
            size_bytes=sum(part.size_bytes for part in parts),
            tree={MODEL: weights.tree, **rest} if rest else weights.tree,
            reader=TensorReader(*(file for part in parts for file in part.reader.opened)),
            globals_named=tuple(named for part in parts for named in part.globals_named),
            metadata=weights.metadata,
        )


# ------------------------------------------------------------------------------------------- index


def _read_index(file: SourceFile) -> tuple[dict[str, str], dict[str, Any]]:
    """(tensor's name -> shard's file name, what the index says of itself).

    Raises:
        DamagedError: no JSON, a name twice, or a shard that is no name in the folder.
    """
    if file.size > MAX_INDEX:
        raise DamagedError(f"an index of {file.size:,} bytes is larger than any real one")
    try:
        fields = json.loads(file.read(0, file.size), object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise DamagedError("the index is nested without end") from error
    except ValueError as error:
        raise DamagedError(f"the index is no valid JSON: {error}") from error
    weight_map = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(weight_map, dict):
        raise DamagedError("the index maps nothing: weight_map is no object")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise DamagedError(
                f"the index names {shard!r:.80} as a shard, which is no file of its folder",
                address=name,
            )
    metadata = fields.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise DamagedError("the index has a name twice; readers would disagree")
    return made


def _is_plain_name(shard: str) -> bool:
    return shard not in {"", ".", ".."} and "/" not in shard and "\0" not in shard


def _opened(open_file: OpenFile, path: Path, index: Path) -> Checkpoint:
    try:
        return open_file(path)
    except CkptError as error:
        missing = not path.exists() and path != index
        said = DamagedError(
            f"{index.name} names it as a shard, and it is missing",
            hint="fetch it from where the others came from",
        )
        raise (said if missing else error).at(path) from error.__cause__


def _joined(weight_map: dict[str, str], shards: dict[str, Checkpoint]) -> dict[str, Tree]:
    """The tensors of all shards under their names, in the order of the map.

    Raises:
        DamagedError: a shard lacks a name, or is no state dict.
    """
    tree: dict[str, Tree] = {}
    for name, shard in weight_map.items():
        held = shards[shard].tree
        if not isinstance(held, dict) or name not in held:
            raise DamagedError(f"the index looks for it in {shard}, where it is not", address=name)
        tree[name] = held[name]
    for part in shards.values():
        for name, value in part.tree.items():
            tree.setdefault(name, value)
    return tree


# ------------------------------------------------------------------------------------------ folder


def _indices(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if path.name.endswith(INDEX)]


def _files(folder: Path) -> list[Path]:
    """The files of a folder, sorted; nothing when it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []

"""``torch.distributed.checkpoint``: a folder with a plan and the shards it points into.

Layout::

    .metadata         a pickle of Metadata: for each flat name its type, size and chunks
                      (state_dict_metadata), where each chunk is stored (storage_data: file,
                      offset, length), and the nested keys that a flat name was made of
                      (planner_data) __<rank>_<n>.distcp   chunks one after the other, each a
                      ``torch.save`` of its own

Rules: a chunk's file is a name in the folder, never a path out of it. A chunk has the shape that
the plan says. Chunks that were transformed on writing (compressed) are no slices of a file and are
refused. The nesting is restored from ``planner_data``: ``model.stem.weight`` is the tensor
``stem.weight`` of ``model``.

Source: torch 2.13 ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.nested import read_source
from ckptool.formats.pickled import Pickles
from ckptool.formats.torch_objects import TorchBuilder, dtype_of
from ckptool.tree import ByteSpan, Chunk, Opaque, TensorRef, Tree

METADATA = ".metadata"

Place = tuple[str, int, int]  # file in the folder, offset, length


class DcpFolder:
    """See the module's docstring."""

    name = "dcp"

    def matches(self, folder: Path) -> bool:
        """A folder with the plan in it."""
        return (folder / METADATA).is_file()

    def open(self, folder: Path) -> Checkpoint:
        """The checkpoint in a folder; reads the plan, and the header of each chunk."""
        with SourceFile(folder / METADATA) as file:
            pickles = Pickles(file, METADATA)
            plan, _ = pickles.read(FileWindow(file), TorchBuilder(_no_storage))
            size = file.size
        shards = _Shards(folder)
        try:
            tree = _tree(plan, shards)
        except BaseException:
            shards.close()
            raise
        return Checkpoint(
            path=folder,
            format_name=self.name,
            size_bytes=size + sum(file.size for file in shards.files.values()),
            tree=tree,
            reader=TensorReader(*shards.files.values()),
            globals_named=(*pickles.globals_named, *shards.globals_named),
        )


class _Shards:
    """The files with the chunks, opened as they are needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, SourceFile] = {}
        self._pickles: dict[str, Pickles] = {}

    def read(self, place: Place) -> Tree:
        """The object that is saved at a place."""
        name, offset, length = place
        if name not in self.files:
            if os.path.basename(name) != name or name in {"", ".", ".."}:  # noqa: PTH119
                raise DamagedError(f"the plan points out of the folder: {name!r:.80}")
            self.files[name] = SourceFile(self._folder / name)
            self._pickles[name] = Pickles(self.files[name], name)
        return read_source(FileWindow(self.files[name], offset, length), self._pickles[name])

    @property
    def globals_named(self) -> tuple[Any, ...]:
        """What the shards' pickles name."""
        return tuple(named for p in self._pickles.values() for named in p.globals_named)

    def close(self) -> None:
        """Close every file."""
        for file in self.files.values():
            file.close()


def _tree(plan: Any, shards: _Shards) -> Tree:
    fields = _fields(plan, "the plan")
    stored = _places(fields.get("storage_data"))
    paths = fields.get("planner_data")
    tree: dict[Any, Any] = {}
    for name, entry in _fields(fields.get("state_dict_metadata"), "the list of names").items():
        path = paths.get(name) if isinstance(paths, dict) else None
        keys = path if isinstance(path, tuple) and path else (name,)
        _insert(tree, keys, _value(str(name), entry, stored, shards))
    return tree


def _places(storage_data: Any) -> dict[tuple[str, tuple[int, ...]], Place]:
    """(name, offset of the chunk) -> where it is stored."""
    places = {}
    for index, info in _fields(storage_data, "the list of places").items():
        key, where = _fields(index, "an index"), _fields(info, "a place")
        if where.get("transform_descriptors"):
            raise UnsupportedError(
                f"the values of {key.get('fqn')!r:.80} were transformed on writing, so they "
                "cannot be read in place",
                hint="load and save it again with torch, without extensions",
            )
        place = (where.get("relative_path"), where.get("offset"), where.get("length"))
        if not (isinstance(place[0], str) and all(type(n) is int and n >= 0 for n in place[1:])):
            raise DamagedError("a place in the plan is no file, offset and length")
        places[str(key.get("fqn")), tuple(key.get("offset") or ())] = place
    return places  # type: ignore[return-value]


def _value(
    name: str, entry: Any, stored: Mapping[tuple[str, tuple[int, ...]], Place], shards: _Shards
) -> Tree:
    fields = _fields(entry, name) if isinstance(entry, Opaque) else {}
    if "chunks" not in fields:
        return shards.read(_place(stored, name, ()))
    chunks = []
    part: Any = None
    for chunk in fields["chunks"]:
        corner = _fields(chunk, name)
        offsets, sizes = tuple(corner["offsets"]), tuple(corner["sizes"])
        part = shards.read(_place(stored, name, offsets))
        if not isinstance(part, TensorRef) or part.shape != sizes or len(part.chunks) != 1:
            raise DamagedError(
                f"the chunk at {list(offsets)} is not what the plan says", address=name
            )
        chunks.append(Chunk(part.chunks[0].span, offsets, sizes, part.chunks[0].strides))
    return TensorRef(
        dtype=part.dtype if part is not None else _planned_dtype(fields),
        shape=tuple(fields["size"]),
        chunks=tuple(chunks),
        byteorder=part.byteorder if part is not None else "little",
    )


def _planned_dtype(fields: Mapping[Any, Any]) -> Any:
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Opaque) else None
    return dtype_of(state[0] if isinstance(state, tuple) and state else None)


def _place(
    stored: Mapping[tuple[str, tuple[int, ...]], Place], name: str, offsets: tuple[int, ...]
) -> Place:
    if (name, offsets) not in stored:
        raise DamagedError(
            f"the plan does not say where the chunk at {list(offsets)} is", address=name
        )
    return stored[name, offsets]


def _insert(tree: dict[Any, Any], keys: tuple[Any, ...], value: Tree) -> None:
    """Put a value at its nested place; indices of lists are kept as keys."""
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise DamagedError(f"the plan puts values below the value {key!r:.60}")
    node[keys[-1]] = value


def _fields(node: Any, what: str) -> Mapping[Any, Any]:
    fields = node.attributes if isinstance(node, Opaque) else node
    if not isinstance(fields, dict):
        raise DamagedError(f"{what:.80} is no set of fields")
    return fields


def _no_storage(key: str, _nbytes: int) -> ByteSpan:
    raise DamagedError(f"the plan refers to a storage {key:.60}, but plans hold no tensors")

"""``torch.distributed.checkpoint``: a folder with a plan and the shards it points into.

Layout::

    .metadata         a pickle of Metadata: for each flat name its type, size and chunks
                      (state_dict_metadata), where each chunk is stored (storage_data: file,
                      offset, length), and the nested keys that a flat name was made of
                      (planner_data)
    __<rank>_<n>.distcp
                      chunks one after the other, each a ``torch.save`` of its own

Rules: a chunk's file is a name in the folder, never a path out of it. A chunk has the shape and the
element type that the plan says, and every element of a tensor is in one chunk. Chunks that were
transformed on writing (compressed) are no slices of a file and are refused. The nesting is restored
from ``planner_data``: ``model.stem.weight`` is the tensor ``stem.weight`` of ``model``.

Source: torch 2.13 ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ckptool.dtypes import DType
from ckptool.errors import CkptError, DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.formats.byte_sources import FileWindow, SourceWindow
from ckptool.formats.nested import read_source
from ckptool.formats.pickled import Pickles
from ckptool.formats.torch_objects import TorchBuilder, dtype_of
from ckptool.tree import MAX_DEPTH, ByteSpan, Chunk, Opaque, TensorRef, Tree

METADATA = ".metadata"
MAX_NDIM, MAX_SIZE = 64, 2**63 - 1  # what torch can represent

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
            with pickles.telling():
                plan, _ = pickles.read(FileWindow(file), TorchBuilder(_no_storage))
            size = file.size
        shards = _Shards(folder)
        try:
            with pickles.telling():
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
        return read_source(
            SourceWindow(FileWindow(self.files[name]), offset, length), self._pickles[name]
        )

    @property
    def globals_named(self) -> tuple[Any, ...]:
        """What the shards' pickles name."""
        return tuple(named for p in self._pickles.values() for named in p.globals_named)

    def close(self) -> None:
        """Close every file."""
        for file in self.files.values():
            file.close()


def _tree(plan: Any, shards: _Shards) -> Tree:
    """The tree of a plan; whatever is wrong with the plan's own objects is damage."""
    try:
        return _nested(plan, shards)
    except CkptError:
        raise
    except Exception as error:
        raise DamagedError(f"the plan is not made as plans are: {error}") from error


def _nested(plan: Any, shards: _Shards) -> Tree:
    fields = _fields(plan, "the plan")
    stored = _places(fields.get("storage_data"))
    paths = fields.get("planner_data")
    tree: dict[Any, Any] = {}
    for name, entry in _fields(fields.get("state_dict_metadata"), "the list of names").items():
        path = paths.get(name) if isinstance(paths, dict) else None
        keys = path if isinstance(path, tuple) and path else (name,)
        _insert(tree, keys, _value(_text(name), entry, stored, shards))
    return tree


def _places(storage_data: Any) -> dict[tuple[str, tuple[int, ...]], Place]:
    """(name, offset of the chunk) -> where it is stored."""
    places = {}
    for index, info in _fields(storage_data, "the list of places").items():
        key, where = _fields(index, "an index"), _fields(info, "a place")
        name = _text(key.get("fqn"))
        if where.get("transform_descriptors"):
            raise UnsupportedError(
                "the values were transformed on writing, so they cannot be read in place",
                address=name,
                hint="load and save it again with torch, without extensions",
            )
        place = (where.get("relative_path"), where.get("offset"), where.get("length"))
        if not (isinstance(place[0], str) and all(type(n) is int and n >= 0 for n in place[1:])):
            raise DamagedError("a place in the plan is no file, offset and length")
        places[name, tuple(key.get("offset") or ())] = place
    return places  # type: ignore[return-value]


def _value(
    name: str, entry: Any, stored: Mapping[tuple[str, tuple[int, ...]], Place], shards: _Shards
) -> Tree:
    fields = _fields(entry, name)
    if not fields.keys() & {"properties", "size", "chunks"}:
        return shards.read(_place(stored, name, ()))
    shape = _sizes(fields.get("size"), name)
    planned = _planned_dtype(fields)
    first: TensorRef | None = None
    chunks = []
    for box in _boxes(fields.get("chunks"), shape, name):
        part = shards.read(_place(stored, name, box.offsets))
        if not isinstance(part, TensorRef) or part.shape != box.sizes or len(part.chunks) != 1:
            raise DamagedError(
                f"the chunk at {list(box.offsets)} is not what the plan says", address=name
            )
        if part.lazy or part.quantizer:
            raise UnsupportedError(
                "its chunks are quantized, conjugated or negated, which the plan does not say",
                address=name,
                hint="save it again after resolve_conj(), resolve_neg() or dequantize()",
            )
        first = first or part
        if part.dtype is not (planned or first.dtype) or part.byteorder != first.byteorder:
            raise DamagedError(
                f"the chunk at {list(box.offsets)} has another element type or byte order",
                address=name,
            )
        chunks.append(Chunk(part.chunks[0].span, box.offsets, box.sizes, part.chunks[0].strides))
    dtype = first.dtype if first else planned
    if dtype is None:
        raise DamagedError("the plan does not say its element type", address=name)
    return TensorRef(dtype, shape, tuple(chunks), byteorder=first.byteorder if first else "little")


def _planned_dtype(fields: Mapping[Any, Any]) -> DType | None:
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Opaque) else None
    return dtype_of(state[0]) if isinstance(state, tuple) and state else None


# -------------------------------------------------------------------------------------- the chunks


class _Box(NamedTuple):
    """Where a chunk lies in its tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def _boxes(planned: Any, shape: tuple[int, ...], name: str) -> list[_Box]:
    """The chunks that hold values, which together are the tensor, each element once.

    Raises:
        DamagedError: they are not.
    """
    if not isinstance(planned, (list, tuple)):
        raise DamagedError("the plan does not list its chunks", address=name)
    boxes = []
    for chunk in planned:
        corner = _fields(chunk, name)
        box = _Box(_sizes(corner.get("offsets"), name), _sizes(corner.get("sizes"), name))
        if not len(box.offsets) == len(box.sizes) == len(shape) or any(
            start + size > whole for start, size, whole in zip(*box, shape, strict=True)
        ):
            raise DamagedError(
                f"the chunk at {list(box.offsets)} reaches out of the tensor", address=name
            )
        boxes.append(box)
    # A rank that has no rows writes an empty chunk, often where another one begins.
    boxes = [box for box in boxes if prod(box.sizes)] or list(dict.fromkeys(boxes))
    covered = sum(prod(box.sizes) for box in boxes) == prod(shape)
    if not covered or (len(boxes) == 1 and boxes[0].sizes != shape):
        raise DamagedError(f"its chunks do not cover its shape {list(shape)}", address=name)
    if prod(shape) and not _separate(boxes, len(shape)):
        raise DamagedError("its chunks overlap", address=name)
    return boxes


def _separate(boxes: list[_Box], ndim: int) -> bool:
    """Whether cuts right through the tensor part all chunks from one another.

    Meshes of devices cut so, each axis once; twice allows for cuts that differ from slab to slab.
    The time is that of sorting, so that no plan can make it long.
    """
    groups = [boxes] if len(boxes) > 1 else []
    for axis in (*range(ndim), *range(ndim)):
        groups = [slab for group in groups for slab in _slabs(group, axis) if len(slab) > 1]
    return not groups


def _slabs(boxes: list[_Box], axis: int) -> list[list[_Box]]:
    """The chunks in groups that share no place on the axis."""
    slabs: list[list[_Box]] = []
    end = 0
    for box in sorted(boxes, key=lambda box: box.offsets[axis]):
        if not slabs or box.offsets[axis] >= end:
            slabs.append([])
        slabs[-1].append(box)
        end = max(end, box.offsets[axis] + box.sizes[axis])
    return slabs


def _sizes(values: Any, name: str) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or len(values) > MAX_NDIM:
        raise DamagedError("the plan lacks its size, or where a chunk lies", address=name)
    if not all(type(size) is int and 0 <= size <= MAX_SIZE for size in values):
        raise DamagedError("the plan gives it a size that is none", address=name)
    return tuple(values)


# -------------------------------------------------------------------------------- parts of the plan


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
    if len(keys) > MAX_DEPTH or not all(isinstance(key, (str, int)) for key in keys):
        raise DamagedError("the plan nests a value below what is no name and no index")
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise DamagedError(f"the plan puts values below the value {key!r:.60}")
    if keys[-1] in node:
        raise DamagedError(f"the plan puts two values at {keys[-1]!r:.60}")
    node[keys[-1]] = value


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise DamagedError(f"a name in the plan is a {type(name).__name__}")
    return name


def _fields(node: Any, what: str) -> Mapping[Any, Any]:
    fields = node.attributes if isinstance(node, Opaque) else node
    if not isinstance(fields, dict):
        raise DamagedError(f"{what:.80} is no set of fields")
    return fields


def _no_storage(key: str, _nbytes: int) -> ByteSpan:
    raise DamagedError(f"the plan refers to a storage {key:.60}, but plans hold no tensors")

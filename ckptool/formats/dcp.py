"""The format of ``torch.distributed.checkpoint``: a directory with a plan and shards.

Layout::

    .metadata         a pickle of Metadata: for each flat name its type, size and chunks
                      (state_dict_metadata), where each chunk is stored (storage_data: file,
                      offset, length), and the nested keys that a flat name was made of
                      (planner_data)
    __<rank>_<n>.distcp
                      chunks one after the other, each a ``torch.save`` of its own

Rules: a chunk's file is a name in the directory, never a path out of it. A chunk has the shape and
the dtype that the plan states, and every element of a tensor is in one chunk. Chunks that were
transformed on writing (compressed) are no slices of a file, so they are refused. The nesting is
restored from ``planner_data``: ``model.stem.weight`` is the tensor ``stem.weight`` of ``model``.
A loader makes the flat name anew of these keys, and takes the values that the plan has under that
one. So keys that make another name than the one that they stand beside are refused.

Source: torch 2.13 ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptool.dtypes import DType
from ckptool.errors import (
    CkptError,
    DamagedError,
    RepetitionError,
    UnreadableError,
    UnsupportedError,
)
from ckptool.formats.base import Checkpoint, FolderFormat, NamedGlobal, Note, TensorReader
from ckptool.formats.folders import all_or_none
from ckptool.formats.nested import pickles_of, read_source
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.storages import StorageKey
from ckptool.formats.pickles.tensor_views import as_text, dtype_of, kind_of
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.provenance import KEY
from ckptool.formats.ranked.assembly import Box, from_boxes, held_boxes
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.places import open_file
from ckptool.sources.window import Window
from ckptool.tree.describing import named
from ckptool.tree.geometry import are_sizes
from ckptool.tree.nodes import MAX_DEPTH, Opaque, Tree, fields_of

METADATA = ".metadata"
SHARD = ".distcp"  # the suffix of files with chunks
OF_RANK = regex(r"__(\d+)_\d+\.distcp")
TENSOR = "TensorStorageMetadata"  # the class of the entry of a tensor

MAX_CHUNKS = 1 << 14  # that are always read,
A_CHUNK = 1 << 10  # or one for so many bytes of the files: its header alone is longer
REPEATS = 2  # times that the bytes of the files are read as chunks

TRUNCATED = "CK102"

Place = tuple[str, int, int]  # file in the directory, offset, length
Stored = Mapping[tuple[str, tuple[int, ...]], Place]  # by name, and offset of the chunk


class DcpFolder(FolderFormat):
    """See the module's docstring."""

    name = "dcp"
    title = "torch.distributed.checkpoint"
    written_by = "`torch.distributed.checkpoint`: a folder with `.metadata` and `.distcp` files"
    suffixes = (".dcp",)
    as_one_file = (
        "ckptool writes no whole folder as one file; torch does, and runs the pickles in it "
        "(dcp_to_torch_save): python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        "FOLDER OUT"
    )
    unread_checksums = "the checksums of the zips inside shards are not read"
    may_trail = is_exclusive = True
    file_kinds = (
        (r"\.metadata", "the plan: where each part of a tensor is"),
        (r"__\d+_\d+\.distcp", "parts of tensors, and values"),
    )

    def matches(self, folder: Path) -> bool:
        """Return whether the directory holds a plan."""
        return (folder / METADATA).is_file()

    def open(self, folder: Path) -> Checkpoint:
        """Return the checkpoint in a directory; read only the plan and the header of each chunk."""
        with open_file(folder / METADATA) as file, all_or_none() as opened:
            saved = read_plan(file, lambda name: opened.enter_context(_opened(folder / name)))
            size = file.size
        return Checkpoint(
            path=folder,
            format=self,
            size_bytes=size + sum(file.size for file in saved.files.values()),
            tree=saved.tree,
            reader=TensorReader(*saved.files.values()),
            globals_named=saved.globals_named,
            metadata=saved.metadata,
            parts=(folder / METADATA,),
            notes=_left_out(folder, saved.files),
            strategy=_strategy(saved.files),
        )


def _strategy(names: Iterable[str]) -> str:
    """Return how ranks shared the tensors; a rank that had nothing to write is not counted."""
    ranks = {match[1] for name in names if (match := OF_RANK.match(name))}
    return f"parts by the offsets in the plan, in the files of {len(ranks):,} " + (
        "ranks" if len(ranks) != 1 else "rank"
    )


class Saved(NamedTuple):
    """The content of a distributed checkpoint, wherever its files are."""

    tree: Tree
    files: Mapping[str, Source]  # that hold chunks, by name
    globals_named: tuple[NamedGlobal, ...]
    metadata: dict[str, Any]  # the note of ckptool, if it wrote the plan


def read_plan(metadata: Source, open_file: Callable[[str], Source]) -> Saved:
    """Return the tree of a plan; ``open_file`` opens a file with chunks by its plain name.

    Raises:
        DamagedError: the plan is no plan, or a chunk is not what it states.
        UnsupportedError: the chunks were transformed on writing.
    """
    pickles = pickles_of(METADATA)
    with pickles.telling():
        plan, _ = pickles.read(metadata, TorchBuilder(_no_storage, pickles.open_nested))
        shards = _Shards(open_file)
        tree = _tree(plan, shards)
    note = {KEY: fields_of(plan)[KEY]} if KEY in fields_of(plan) else {}
    return Saved(tree, shards.files, (*pickles.globals_named, *shards.globals_named), note)


class _Shards:
    """The files with the chunks, opened when they are needed."""

    def __init__(self, open_file: Callable[[str], Source]) -> None:
        self._open_file = open_file
        self.files: dict[str, Source] = {}
        self._pickles: dict[str, Pickles] = {}
        self._room = 0  # bytes of the files
        self._chunks = self._nbytes = 0  # that were read
        self.stored: Stored = {}

    def read(self, place: Place) -> Tree:
        """Return the object that is saved at a place.

        Raises:
            RepetitionError: the plan has more chunks than the files have room for.
        """
        name, offset, length = place
        if name not in self.files:
            if os.path.basename(name) != name or name in {"", ".", ".."}:  # noqa: PTH119
                raise DamagedError(f"the plan points out of the folder: {name!r:.80}")
            self.files[name] = self._open_file(name)
            self._pickles[name] = pickles_of(name)
            self._room += self.files[name].size
        if offset + length > self.files[name].size:
            raise self._cut(name)
        self._chunks += 1
        self._nbytes += length
        is_many = self._chunks > max(MAX_CHUNKS, self._room // A_CHUNK)
        if is_many or self._nbytes > REPEATS * self._room:
            raise RepetitionError(
                "the plan has more chunks than its files have room for: to read each of them would "
                "take too long",
                hint="fetch the directory again: no program writes a chunk twice",
            )
        return read_source(Window(self.files[name], offset, length), self._pickles[name])

    def _cut(self, name: str) -> DamagedError:
        """Return the error for a file that ends before values that the plan has in it."""
        size, path = self.files[name].size, self.files[name].path
        ends: dict[str, int] = {}
        for (entry, _), (file, offset, length) in self.stored.items():
            if file == name:
                ends[entry] = max(ends.get(entry, 0), offset + length)
        lost = sorted(entry for entry, end in ends.items() if end > size)
        error = DamagedError(
            f"truncated: {'it' if path else name} ends at {size:,} bytes, and by the plan its "
            f"values end at {max(ends.values()):,}: {len(lost):,} of {len(ends):,} tensors and "
            f"values are not all there: {named(lost)}",
            path=path,
        )
        error.rule = TRUNCATED  # what remains of the first chunk tells nothing of the others
        return error

    @property
    def globals_named(self) -> tuple[NamedGlobal, ...]:
        """The classes and functions that the pickles of the shards name."""
        return tuple(each for p in self._pickles.values() for each in p.globals_named)


def missing_file(path: Path | str) -> DamagedError:
    """Return the error for a file that a plan names, and that is not there."""
    return DamagedError(
        f"it is missing, and {METADATA} says that values are in it",
        path=path,
        hint="fetch it from where the others came from",
    )


def _opened(path: Path) -> Source:
    try:
        return open_file(path)
    except UnreadableError as error:
        if path.exists():
            raise
        raise missing_file(path) from error


def _left_out(folder: Path, files: Mapping[str, Source]) -> tuple[Note, ...]:
    """Return a note on other files of chunks, mostly of an earlier save by more processes.

    An empty file is left out: a process that had nothing to write leaves one.
    """
    beside = sorted(p for p in folder.glob(f"*{SHARD}") if p.name not in files)
    names = [path.name for path in beside if path.is_file() and path.stat().st_size]
    lie = "lie" if len(names) > 1 else "lies"
    said = f"{METADATA} names nothing in {named(names)}, which {lie} beside it"
    return (Note("CK108", "", said),) if names else ()


def _tree(plan: Any, shards: _Shards) -> Tree:
    """Return the tree of a plan; any error in the plan's own objects is damage."""
    try:
        return _nested(plan, shards)
    except CkptError:
        raise
    except Exception as error:
        raise DamagedError(f"the plan has another form than torch gives it: {error}") from error


def _nested(plan: Any, shards: _Shards) -> Tree:
    fields = _fields(plan, "the plan")
    stored = shards.stored = _places(fields.get("storage_data"))
    paths = fields.get("planner_data")
    if not isinstance(paths, (dict, type(None))):
        raise DamagedError(f"the plan has {kind_of(paths)} where torch puts a dict of key paths")
    tree: dict[Any, Any] = _Branch()
    for name, entry in _fields(fields.get("state_dict_metadata"), "the list of names").items():
        keys = _keys(name, paths or {})
        _insert(tree, keys, _value(_text(name), entry, stored, shards))
    return {key: _with_lists(value) for key, value in tree.items()}


def _keys(name: Any, paths: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Return the nested keys that a flat name was made of.

    Raises:
        DamagedError: they make another flat name, under which torch would look for the values.
    """
    path = paths.get(name, (name,))
    keys = tuple(path) if isinstance(path, (tuple, list)) else ()
    if not keys or ".".join(map(as_text, keys)) != name:
        raise DamagedError(
            "the plan puts it under keys that make another name, by which torch would take other "
            "values",
            address=str(name),
        )
    return keys


def _places(storage_data: Any) -> dict[tuple[str, tuple[int, ...]], Place]:
    """Return the place of each chunk by (name, offset of the chunk)."""
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
        chunk = (name, tuple(key.get("offset") or ()))
        if chunk in places:  # None and () are two offsets for torch
            raise DamagedError("the plan gives two places for a chunk", address=name)
        places[chunk] = place
    return places  # type: ignore[return-value]


def _value(name: str, entry: Any, stored: Stored, shards: _Shards) -> Tree:
    fields = _fields(entry, name)
    is_tensor = bool(fields.keys() & {"properties", "size", "chunks"})
    kind = entry.qualname.rpartition(".")[2] if isinstance(entry, Opaque) else ""
    if is_tensor != (kind == TENSOR):  # torch goes by the class
        raise DamagedError("the plan describes it as what its class is not", address=name)
    if not is_tensor:
        return shards.read(_place(stored, name, ()))
    shape = _sizes(fields.get("size"), name)
    boxes = held_boxes(_boxes(fields.get("chunks"), name), shape, name)
    parts = ((box, shards.read(_place(stored, name, box.offsets))) for box in boxes)
    return from_boxes(name, shape, parts, _planned_dtype(fields))


def _planned_dtype(fields: Mapping[Any, Any]) -> DType | None:
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Opaque) else None
    return dtype_of(state[0]) if isinstance(state, tuple) and state else None


# -------------------------------------------------------------------------------------- the chunks


def _boxes(planned: Any, name: str) -> list[Box]:
    """Return the chunks that the plan lists."""
    if not isinstance(planned, (list, tuple)):
        raise DamagedError("the plan does not list its chunks", address=name)
    corners = (_fields(chunk, name) for chunk in planned)
    return [
        Box(_sizes(corner.get("offsets"), name), _sizes(corner.get("sizes"), name))
        for corner in corners
    ]


def _sizes(values: Any, name: str) -> tuple[int, ...]:
    if not are_sizes(values):
        raise DamagedError("the plan lacks its size, or where a chunk lies", address=name)
    return tuple(values)


# -------------------------------------------------------------------------------- parts of the plan


def _place(stored: Stored, name: str, offsets: tuple[int, ...]) -> Place:
    if (name, offsets) not in stored:
        raise DamagedError(
            f"the plan does not say where the chunk at {list(offsets)} is", address=name
        )
    return stored[name, offsets]


def _insert(tree: dict[Any, Any], keys: tuple[Any, ...], value: Tree) -> None:
    """Put a value at its key path; indices of lists are kept as keys for now."""
    if len(keys) > MAX_DEPTH or not all(isinstance(key, (str, int)) for key in keys):
        raise DamagedError("the plan puts a value below a key that is neither a name nor an index")
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, type(node)())
        if not isinstance(node, dict):
            raise DamagedError(f"the plan puts values below the value {key!r:.60}")
    if keys[-1] in node:
        raise DamagedError(f"the plan puts two values at {keys[-1]!r:.60}")
    node[keys[-1]] = value


class _Branch(dict[Any, Any]):
    """A container that the plan has cut into its values; one that was saved whole is another dict.

    torch makes the keys of dicts text, and counts in lists: numbers are the indices of a list.
    """


def _with_lists(node: Any) -> Any:
    """Return a tree with the lists that torch makes of indices.

    Indices that leave one out stay keys: torch would put None there, any number of them.
    """
    if not isinstance(node, _Branch):
        return node
    values = {key: _with_lists(value) for key, value in node.items()}
    if all(type(key) is int for key in values) and sorted(values) == list(range(len(values))):
        return [values[index] for index in range(len(values))]
    return values


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise DamagedError(f"a name in the plan is a {type(name).__name__}")
    return name


def _fields(node: Any, what: str) -> Mapping[Any, Any]:
    fields = node.attributes if isinstance(node, Opaque) else node
    if not isinstance(fields, dict):
        raise DamagedError(f"{what:.80} is no set of fields")
    return fields


def _no_storage(key: StorageKey, _nbytes: int) -> ByteSpan:
    raise DamagedError(
        f"the plan refers to a storage {as_text(key):.60}, but plans hold no tensors"
    )

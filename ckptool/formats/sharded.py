"""Sharded weights: several files, with an index that maps each tensor to its file.

Layout, as Hugging Face libraries write it::

    model.safetensors.index.json      {"metadata": {"total_size": 289…},
                                       "weight_map": {"name": "model-00001-of-00002.safetensors"}}
    model-00001-of-00002.safetensors  the shards, next to the index; for torch's files
    …                                 pytorch_model.bin.index.json and .bin

Rules: a shard's file is a name in the index's directory, never a path out of it. A tensor is in the
shard that the map gives. Tensors beyond the map are kept too, since loaders load whole shards: a
tensor that is in two shards has the same values in both, or it depends on the loader's order which
of them counts. Many bytes are compared only when a command takes values. A file that is named like
a shard but is not in the map is reported: some loaders load it, and some do not. A directory with
one index is a checkpoint; other checkpoints in the directory (``optimizer.pt``) are next to the
weights in the tree, under their file names.

Source: huggingface_hub ``serialization/_torch.py``, transformers ``modeling_utils.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ckptool.errors import AbsentError, CkptError, DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint, FileFormat, Note, TensorReader
from ckptool.formats.folders import WEIGHTS, FolderOfFiles, OpenFile, all_or_none, joined, reader_of
from ckptool.formats.safetensors_file import noted_ties
from ckptool.formats.same_values import Copy, SameValues, differs, may_be_equal
from ckptool.formats.texts import json_object
from ckptool.records import replace
from ckptool.regex import regex
from ckptool.sources.base import Source
from ckptool.sources.places import files_in
from ckptool.tree.describing import named
from ckptool.tree.nodes import TensorRef, Tree

INDEX = ".index.json"
WEIGHT_MAP = regex(rb'\s*\{.*"weight_map"\s*:', re.DOTALL)
LONG_METADATA = regex(rb'\s*\{\s*"metadata"\s*:\s*\{[^}]*\Z')  # reaches beyond the head
MAX_INDEX = 256 << 20  # bytes; an index of 100,000 tensors has about ten million
INDEX_NAME = regex(r"(?P<stem>.+)(?P<suffix>\.\w+)\.index(?P<variant>\.\w+)?\.json\Z")
MODEL = "model"  # the key of the weights next to other checkpoints


class ShardIndex(FileFormat):
    """An index that is opened by itself; see the module's docstring."""

    name = "sharded"
    title = "shards with an index"
    written_by = "weights in several files with a Hugging Face index"
    is_of_parts = True

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    def matches(self, head: bytes) -> bool:
        """Return whether ``head`` begins JSON with a ``weight_map``.

        Long ``metadata`` counts too: records of shared tensors may move the map beyond the head.
        """
        return any(pattern.match(head) for pattern in (WEIGHT_MAP, LONG_METADATA))

    def open(self, file: Source) -> Checkpoint:
        """Return the tensors of all shards; read only the index and the header of each shard."""
        weight_map, metadata = _read_index(file)
        index = file.path
        if index is None:
            raise UnsupportedError(
                "an index of shards, which lie in files beside it: name its file"
            )
        folder = index.parent
        _refuse_missing(folder, weight_map, index)
        with all_or_none() as opened:
            shards = {
                name: opened.enter_context(self._opened(folder / name, index))
                for name in dict.fromkeys(weight_map.values())
            }
            tree, copies = _joined(weight_map, shards)
            same = SameValues(reader_of(shards))
            is_compared = same.is_cheap(copies)
            if is_compared:
                same.refuse_different(copies)
            texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
            tree |= {name: tree[kept] for name, kept in noted_ties(texts, tree)}
        whole = joined(
            self,
            index,
            shards,
            tree,
            metadata={**_said_alike([part.metadata for part in shards.values()]), **metadata},
            reader=TensorReader(file, *reader_of(shards).opened),
        )
        left_out = _left_out(index, set(weight_map.values()))
        later = () if is_compared else (partial(same.refuse_different, copies),)
        repeated = _repeated([copy.name for copy in copies], is_compared=is_compared)
        return replace(
            whole,
            notes=(*whole.notes, *repeated, *left_out),
            uncompared=(*whole.uncompared, *later),
        )

    def _opened(self, path: Path, index: Path) -> Checkpoint:
        try:
            return self._open_file(path)
        except CkptError as error:
            if not path.exists() and path != index:  # it was deleted meanwhile
                raise _missing(index, [path.name]) from error.__cause__
            raise


def _said_alike(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metadata that are equal in all shards."""
    first, *rest = metadata or ({},)
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in rest)
    }


class ShardFolder(FolderOfFiles):
    """A directory with one index."""

    name = "sharded"
    title = "shards with an index"
    written_by = ShardIndex.written_by
    file_kinds = (
        (r".+\.index(\.\w+)?\.json", "which shard holds which weights"),
        (r"(.+-)?\d+-of-\d+(\.\w+)?", "a shard of the weights"),
    )

    def matches(self, folder: Path) -> bool:
        """Return whether the directory has exactly one index, and at least one weights file."""
        indices = _indices(folder)
        return len(indices) == 1 and any(p.suffix in WEIGHTS for p in files_in(folder))

    def open(self, folder: Path) -> Checkpoint:
        """Return the weights, in one tree with other checkpoints of the directory."""
        (index,) = _indices(folder)
        with all_or_none() as opened:
            weights = opened.enter_context(self._open_file(index))
            shards = {file.path for file in weights.reader.opened}
            paths = (path for path in files_in(folder) if path.suffix in WEIGHTS)
            others = self._opened(opened, (path for path in paths if path not in shards))
        rest: dict[str, Tree] = {name: part.tree for name, part in others.items()}
        tree = {MODEL: weights.tree, **rest} if rest else weights.tree
        # The notes on the weights need no prefix: they name the shards themselves.
        parts = {MODEL: replace(weights, notes=()), **others}
        whole = joined(self, folder, parts, tree, metadata=weights.metadata)
        return replace(whole, notes=(*weights.notes, *whole.notes))


# ------------------------------------------------------------------------------------------- index


def _read_index(file: Source) -> tuple[dict[str, str], dict[str, Any]]:
    """Return (tensor's name -> shard's file name, metadata of the index)."""
    if file.size > MAX_INDEX:
        raise DamagedError(f"an index of {file.size:,} bytes is larger than any real one")
    fields = json_object(file.read(0, file.size), "the index")
    weight_map = fields.get("weight_map")
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


def _is_plain_name(shard: str) -> bool:
    return shard not in {"", ".", ".."} and "/" not in shard and "\0" not in shard


def _refuse_missing(folder: Path, weight_map: dict[str, str], index: Path) -> None:
    """Refuse missing shards before one is opened, so that the error names all of them."""
    missing = [name for name in dict.fromkeys(weight_map.values()) if not _exists(folder / name)]
    if missing:
        raise _missing(index, missing)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _missing(index: Path, names: list[str]) -> DamagedError:
    first, *others = names
    said = f"it is missing, and {index.name} names it as a shard"
    if others:
        said += f"; {_counted(len(others), 'other shard is', 'other shards are')} missing too: "
        said += named(others)
    hint = f"fetch {'them' if others else 'it'} from where the others came from"
    return DamagedError(said, path=index.parent / first, hint=hint)


def _counted(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _left_out(index: Path, indexed: set[str]) -> Iterator[Note]:
    """Yield notes on weights that the index leaves out: shards of its name, or one whole file."""
    match = INDEX_NAME.match(index.name)
    if match is None:
        return
    shard = re.compile(
        re.escape(match["stem"]) + r"(-\d+-of-(?P<total>\d+))?" + re.escape(match["suffix"]) + r"\Z"
    )
    beside = [
        p.name for p in files_in(index.parent) if p.name not in indexed and shard.match(p.name)
    ]
    if beside:
        lie = "lie" if len(beside) > 1 else "lies"
        yield _note(f"{index.name} names no tensor in {named(beside)}, which {lie} beside it")
    totals = {int(m["total"]) for name in indexed if (m := shard.match(name)) and m["total"]}
    if not beside and len(totals) == 1 and (total := max(totals)) > len(indexed):
        shards = _counted(len(indexed), "shard, which is", "shards, which are")
        yield _note(f"{index.name} names {shards} numbered to {total}")


def _note(message: str) -> Note:
    return Note("CK108", "", message)


def _joined(
    weight_map: dict[str, str], shards: dict[str, Checkpoint]
) -> tuple[dict[str, Tree], list[Copy]]:
    """Return the tensors of all shards by name, in the order of the map; then those held twice.

    Raises:
        DamagedError: a tensor is of another kind in another shard.
    """
    tree: dict[str, Tree] = {}
    lacking: list[str] = []
    for name, shard in weight_map.items():
        held = shards[shard].tree
        if not isinstance(held, dict) or name not in held:
            lacking.append(name)
        else:
            tree[name] = held[name]
    if lacking:
        raise _lack(lacking, weight_map)
    copies: list[Copy] = []
    for shard, part in shards.items():
        for name, value in part.tree.items():
            if (kept := tree.setdefault(name, value)) is not value:
                copies.append(_copy(str(name), shard, kept, value))
    return tree, copies


def _copy(name: str, shard: str, kept: Tree, value: Tree) -> Copy:
    are_tensors = isinstance(kept, TensorRef) and isinstance(value, TensorRef)
    if not are_tensors or not may_be_equal(kept, value):
        raise differs(name, shard)
    return Copy(name, shard, kept, value)


def _repeated(names: list[str], *, is_compared: bool) -> Iterator[Note]:
    if not names:
        return
    are = _counted(len(names), "tensor is", "tensors are")
    how = (
        "with the same values in each"
        if is_compared
        else "and their values are compared when they are taken, or by verify --bytes"
    )
    yield Note("CK127", "", f"{are} in more than one shard, {how}: {named(names)}")


def _lack(names: list[str], weight_map: dict[str, str]) -> AbsentError:
    first, *others = names
    said = f"the index looks for it in {weight_map[first]}, where it is not"
    more = f"; nor are {named(others)} where it looks for them" if others else ""
    return AbsentError(said + more, address=first)


# ------------------------------------------------------------------------------------------ folder


def _indices(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if path.name.endswith(INDEX)]

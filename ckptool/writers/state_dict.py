"""A planned state dict and the files that it becomes: one, shards with their index, or a directory.

The plan is made before anything is written. ``--dry-run`` reports it: the files, the tensors in
each, their dtypes, and the shared tensors. safetensors has no way to say that two names share their
bytes, so one name is written and the others are recorded in the metadata or the index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptool.formats import open_checkpoint
from ckptool.formats.dcp import METADATA, DcpFolder
from ckptool.formats.provenance import KEY, LateNote, final
from ckptool.records import NamedTuple
from ckptool.tensors.casting import Casting
from ckptool.tree.nodes import TensorRef
from ckptool.writers import dcp_folder, safetensors_file, torch_zip
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.shards import Shard, index_of, index_path, left_over, plan_shards
from ckptool.writers.transfer import Move, Transfer, transfer
from ckptool.writers.values import check_runs


class StateDict(NamedTuple):
    """The plan of an output: its files, and the tensors in each."""

    output: Path  # as it was named; none of the files if there are several
    kind: str  # safetensors | torch-zip | dcp
    shards: tuple[Shard, ...]
    layouts: tuple[Any, ...]  # of each shard, as its writer has planned it
    casting: Casting
    noted: Mapping[str, str]  # names that are not written, since they share another name's tensor
    wrap: str | None = None
    damaged: bool = False  # the source may be damaged, and is taken all the same

    @property
    def is_folder(self) -> bool:
        """Whether ``output`` is a directory that holds the files."""
        return self.kind == DcpFolder.name

    @property
    def index_file(self) -> Path | None:
        """The file that says which file has which tensor; None if there is one file."""
        if self.is_folder:
            return self.output / METADATA
        return index_path(self.output) if len(self.shards) > 1 else None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files to write, the index last."""
        shards = tuple(shard.path for shard in self.shards)
        return (*shards, self.index_file) if self.index_file else shards

    @property
    def left_over(self) -> tuple[Path, ...]:
        """Shards of an earlier set under this name, which would stay beside the new set."""
        if self.is_folder:
            return dcp_folder.left_over(self.output)
        shards = (shard.path for shard in self.shards)
        return left_over(self.index_file, shards) if self.index_file else ()

    @property
    def values(self) -> Iterator[tuple[str, TensorRef]]:
        """The tensors that are written, each once, under the names by which losses are reported."""
        for shard, layout in zip(self.shards, self.layouts, strict=True):
            yield from WRITERS[self.kind].values(shard.tensors, layout)

    @property
    def cast(self) -> Iterator[tuple[str, TensorRef]]:
        """The tensors that change their dtype."""
        return ((name, ref) for name, ref in self.values if self.casting.is_cast(ref))

    @property
    def nbytes(self) -> int:
        """Size of all values, in bytes."""
        refs = (ref for shard in self.shards for ref in shard.tensors.values())
        return sum(map(self.casting.nbytes_of, refs))


def plan_state_dict(
    output: Path,
    kind: str,
    tensors: Mapping[str, TensorRef],
    casting: Casting,
    *,
    noted: Mapping[str, str],
    wrap: str | None = None,
    max_shard: int | None = None,
    damaged: bool = False,
) -> StateDict:
    """Return the plan of the files for ``tensors``, without the names in ``noted``.

    Raises:
        UnsupportedError: a dtype or a name that the format cannot hold.
    """
    written = {name: ref for name, ref in tensors.items() if name not in noted}
    if kind == DcpFolder.name:
        shards: tuple[Shard, ...] = (Shard(output / dcp_folder.CHUNKS, written),)
    else:
        shards = plan_shards(output, written, casting, max_shard)
    layouts = tuple(WRITERS[kind].plan(shard.tensors, casting) for shard in shards)
    return StateDict(output, kind, shards, layouts, casting, noted, wrap, damaged)


def write(
    plan: StateDict,
    files: Sequence[PartialFile],
    how: Transfer,
    note: str,
) -> None:
    """Write the plan into ``files``, one for each of its paths, and compare the files with it.

    Raises:
        DamagedError: a file does not read back as planned.
        OutputError: there is no room.
    """
    files[0].need(plan.nbytes)
    WRITERS[plan.kind].write(plan, files, how, note)


def count_losses(plan: StateDict, how: Transfer) -> None:
    """Cast without writing, as a dry run does, and count the losses that writing would have."""
    moves = [Move(name, ref, 0) for name, ref in plan.cast]
    transfer(moves, how)


class Writer(NamedTuple):
    """The functions that write a state dict in one format: a row of ``WRITERS``."""

    plan: Callable[[Mapping[str, TensorRef], Casting], Any]  # raises if it cannot hold them
    write: Callable[[StateDict, Sequence[PartialFile], Transfer, str], None]
    values: Callable[[Mapping[str, TensorRef], Any], Iterable[tuple[str, TensorRef]]]


def _write_safetensors(
    plan: StateDict, files: Sequence[PartialFile], how: Transfer, note: str
) -> None:
    noted = {} if plan.index_file else plan.noted  # the index of shards has them
    metadata = {**noted, "format": "pt", KEY: note}  # transformers requires the format
    written = [
        safetensors_file.write(file, layout, metadata, how)
        for layout, file in zip(plan.layouts, files, strict=False)
    ]
    metadata[KEY] = final(note)
    for shard, layout, file, runs in zip(plan.shards, plan.layouts, files, written, strict=False):
        if isinstance(note, LateNote):
            file.patch(safetensors_file.header(layout, metadata), 0)
        safetensors_file.check_written(file.path, shard.tensors, plan.casting, runs)
    if plan.index_file:
        files[-1].write(index_of(plan.shards, plan.casting, plan.noted))


def _write_torch(plan: StateDict, files: Sequence[PartialFile], how: Transfer, note: str) -> None:
    (shard,), (storages,), (file,) = plan.shards, plan.layouts, files
    runs = torch_zip.write(
        file, shard.tensors, how, plan.wrap, note, damaged=plan.damaged, storages=storages
    )
    with open_checkpoint(file.path) as written:
        tree = written.tree if plan.wrap is None else written.tree[plan.wrap]
        found = {name: (ref.dtype, ref.shape) for name, ref in tree.items()}
    wanted = {name: (plan.casting.dtype_of(ref), ref.shape) for name, ref in shard.tensors.items()}
    expect(found == wanted, "other names, types or shapes", file.path)
    check_runs(file.path, runs)


def _write_dcp(plan: StateDict, files: Sequence[PartialFile], how: Transfer, note: str) -> None:
    (shard,), (chunks, metadata) = plan.shards, files
    tensors = shard.tensors
    places = dcp_folder.write(chunks, tensors, how)
    content = dcp_folder.plan(tensors, plan.casting, places, plan.wrap, final(note))
    dcp_folder.check(content, chunks.path, tensors, plan.casting, plan.wrap)
    metadata.write(content)


def _each_tensor(
    tensors: Mapping[str, TensorRef], _layout: object
) -> Iterable[tuple[str, TensorRef]]:
    return tensors.items()


def _each_storage(
    _tensors: object, storages: Sequence[torch_zip.Storage]
) -> Iterable[tuple[str, TensorRef]]:
    return ((storage.name, storage.values) for storage in storages)


WRITERS: Mapping[str, Writer] = {
    "safetensors": Writer(safetensors_file.plan, _write_safetensors, _each_tensor),
    "torch-zip": Writer(torch_zip.plan_storages, _write_torch, _each_storage),
    "dcp": Writer(dcp_folder.refuse, _write_dcp, _each_tensor),
}

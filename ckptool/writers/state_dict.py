"""A planned state dict and the files that it becomes: one, or shards with their index.

The plan is made before anything is written, and is what ``--dry-run`` reports: which files, which
tensors in each, in which types, and which names are left to a note because they are the same tensor
as another (safetensors has no way to say that two names share their bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ckptool.casting import Casting
from ckptool.formats import open_checkpoint
from ckptool.formats.base import TensorReader
from ckptool.numerics import Progress, no_progress
from ckptool.provenance import KEY
from ckptool.tree import TensorRef
from ckptool.writers import safetensors_file, torch_zip
from ckptool.writers.base import PartialFile, expect
from ckptool.writers.shards import Shard, index_of, index_path, left_over, plan_shards
from ckptool.writers.transfer import Account, Move, transfer
from ckptool.writers.values import Run, check_runs


class StateDict(NamedTuple):
    """What is written where."""

    output: Path  # as it was named; with several shards none of the files
    kind: str  # safetensors | torch-zip
    shards: tuple[Shard, ...]
    casting: Casting
    noted: Mapping[str, str]  # names that are not written, because another is the same tensor
    wrap: str | None = None
    damaged: bool = False  # taken all the same, if it is

    @property
    def index_file(self) -> Path | None:
        """The file that says which shard has which tensor; None: there is one file."""
        return index_path(self.output) if len(self.shards) > 1 else None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files to write, the index last."""
        shards = tuple(shard.path for shard in self.shards)
        return (*shards, self.index_file) if self.index_file else shards

    @property
    def left_over(self) -> tuple[Path, ...]:
        """Shards of an earlier set under this name, which would stay beside the new one."""
        shards = (shard.path for shard in self.shards)
        return left_over(self.index_file, shards) if self.index_file else ()

    @property
    def values(self) -> Iterator[tuple[str, TensorRef]]:
        """What is written once, under the name by which its losses are told."""
        for shard in self.shards:
            yield from FORMATS[self.kind].values(shard.tensors, self.casting)

    @property
    def cast(self) -> Iterator[tuple[str, TensorRef]]:
        """What changes its type."""
        return ((name, ref) for name, ref in self.values if self.casting.is_cast(ref))

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
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
    """The files for ``tensors``, of which those in ``noted`` are left out.

    Raises:
        UnsupportedError: a type or a name that the format cannot hold.
    """
    written = {name: ref for name, ref in tensors.items() if name not in noted}
    shards = plan_shards(output, written, casting, max_shard)
    for shard in shards:
        FORMATS[kind].refuse(shard.tensors, casting)
    return StateDict(output, kind, shards, casting, noted, wrap, damaged)


def write(
    plan: StateDict,
    files: Sequence[PartialFile],
    reader: TensorReader,
    account: Account,
    note: str,
    progress: Progress = no_progress,
) -> None:
    """Write the plan into ``files``, one for each of its paths, and hold them against it.

    Raises:
        DamagedError: what was written does not read back as planned.
        OutputError: there is no room.
    """
    files[0].need(plan.nbytes)
    how = FORMATS[plan.kind]
    for shard, file in zip(plan.shards, files, strict=False):
        runs = how.write(plan, shard, file, reader, account, note, progress)
        how.check(plan, shard, file.path, runs)
    if plan.index_file:
        files[-1].write(index_of(plan.shards, plan.casting, plan.noted))


def survey(
    plan: StateDict, reader: TensorReader, account: Account, progress: Progress = no_progress
) -> None:
    """Cast without writing, for the account of what is lost: the same as with writing."""
    moves = [Move(name, ref, 0) for name, ref in plan.cast]
    transfer(moves, reader, plan.casting, account, progress=progress)


class Format(NamedTuple):
    """How a state dict becomes a file: a row of ``FORMATS``."""

    refuse: Callable[[Mapping[str, TensorRef], Casting], object]  # what it cannot hold
    write: Callable[
        [StateDict, Shard, PartialFile, TensorReader, Account, str, Progress], tuple[Run, ...]
    ]
    check: Callable[[StateDict, Shard, Path, tuple[Run, ...]], None]
    values: Callable[[Mapping[str, TensorRef], Casting], Iterable[tuple[str, TensorRef]]]


def _refuse_safetensors(tensors: Mapping[str, TensorRef], casting: Casting) -> object:
    return safetensors_file.header(tensors, {}, casting)


def _write_safetensors(
    plan: StateDict,
    shard: Shard,
    file: PartialFile,
    reader: TensorReader,
    account: Account,
    note: str,
    progress: Progress,
) -> tuple[Run, ...]:
    noted = {} if plan.index_file else plan.noted  # shards leave it to the index
    metadata = {**noted, "format": "pt", KEY: note}  # transformers wants the format
    return safetensors_file.write(
        file, shard.tensors, reader, metadata, plan.casting, account, progress
    )


def _check_safetensors(plan: StateDict, shard: Shard, path: Path, runs: tuple[Run, ...]) -> None:
    safetensors_file.check_written(path, shard.tensors, plan.casting, runs)


def _write_torch(
    plan: StateDict,
    shard: Shard,
    file: PartialFile,
    reader: TensorReader,
    account: Account,
    note: str,
    progress: Progress,
) -> tuple[Run, ...]:
    return torch_zip.write(
        file, shard.tensors, reader, plan.wrap, plan.casting, account, progress, note,
        damaged=plan.damaged,
    )  # fmt: skip


def _check_torch(plan: StateDict, shard: Shard, path: Path, runs: tuple[Run, ...]) -> None:
    with open_checkpoint(path) as written:
        tree = written.tree if plan.wrap is None else written.tree[plan.wrap]
        found = {name: (ref.dtype, ref.shape) for name, ref in tree.items()}
    wanted = {name: (plan.casting.dtype_of(ref), ref.shape) for name, ref in shard.tensors.items()}
    expect(found == wanted, "other names, types or shapes", path)
    check_runs(path, runs)


def _each_tensor(
    tensors: Mapping[str, TensorRef], _casting: Casting
) -> Iterable[tuple[str, TensorRef]]:
    return tensors.items()


def _each_storage(
    tensors: Mapping[str, TensorRef], casting: Casting
) -> Iterable[tuple[str, TensorRef]]:
    storages = torch_zip.plan_storages(tensors, casting)
    return ((storage.name, storage.values) for storage in storages)


FORMATS: Mapping[str, Format] = {
    "safetensors": Format(
        _refuse_safetensors, _write_safetensors, _check_safetensors, _each_tensor
    ),
    "torch-zip": Format(torch_zip.plan_storages, _write_torch, _check_torch, _each_storage),
}

"""A state dict in several files, with the index by which Hugging Face's loaders find the tensors.

The files are ``model-00001-of-00003.safetensors`` … and ``model.safetensors.index.json``. They are
split and written as ``huggingface_hub.save_torch_state_dict`` does it. The tensors keep their
order. A new shard begins when the next tensor would exceed the size limit. A tensor that is larger
than the limit has a shard of its own.

The index makes the shards a checkpoint, so it marks completion. It is put in place last. When a set
is replaced, the old index is removed first, with those of its shards that the new set does not
have. So a loader finds a whole set or none. A run that is killed while files are put in place may
leave shards without an index. No later run removes them, since nothing proves whose they are: they
are refused like any existing file, and ``--force`` replaces those of the same names.

Source: huggingface_hub 2.4 ``serialization/_base.py``, ``serialization/_torch.py``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from ckptool.errors import CkptError, OutputError, UsageError
from ckptool.formats.safetensors_file import parse_json
from ckptool.formats.sharded import MAX_INDEX
from ckptool.process.signals import held
from ckptool.records import NamedTuple
from ckptool.sources.local import LocalFile
from ckptool.tensors.casting import Casting
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.partial import remove_left_over, remove_second_name, target_of
from ckptool.writers.files.whole_file import PartialFile, sync_folder, whole_file

INDEX = ".index.json"
SUFFIX = ".safetensors"
FOLDER_NAME = "model.safetensors"  # the name for which Hugging Face's loaders look in a directory

UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Return a size in bytes: 5,000,000,000 for ``5GB``, 5,368,709,120 for ``5GiB``.

    Raises:
        UsageError: the text is no size.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-zA-Z]*)\s*", text)
    factor = UNITS.get(match[2].lower()) if match else None
    nbytes = int(float(match[1]) * factor) if match and factor else 0
    if nbytes < 1:
        raise UsageError(f"{text!r} is no size", hint="like 5GB, 500MB or 4GiB")
    return nbytes


class Shard(NamedTuple):
    """One file of the output."""

    path: Path
    tensors: Mapping[str, TensorRef]


def plan_shards(
    output: Path, tensors: Mapping[str, TensorRef], casting: Casting, limit: int | None
) -> tuple[Shard, ...]:
    """Return the files to write: ``output``, or several beside it if one would be too large."""
    groups = _groups(tensors, casting, limit) if limit else []
    if len(groups) < 2:
        return (Shard(output, tensors),)
    stem, suffix, count = output.stem, output.suffix, len(groups)
    return tuple(
        Shard(
            output.with_name(f"{stem}-{at:05d}-of-{count:05d}{suffix}"),
            {name: tensors[name] for name in names},
        )
        for at, names in enumerate(groups, 1)
    )


def _groups(tensors: Mapping[str, TensorRef], casting: Casting, limit: int) -> list[list[str]]:
    groups: list[list[str]] = []
    current: list[str] = []
    room = limit
    for name, ref in tensors.items():
        nbytes = casting.nbytes_of(ref)
        if nbytes > limit:
            groups.append([name])
            continue
        if nbytes > room:
            groups.append(current)
            current, room = [], limit
        current.append(name)
        room -= nbytes
    return [*groups, current] if current else groups


def index_path(output: Path) -> Path:
    """Return the path of the index for shards of ``output``."""
    return output.with_name(output.name + INDEX)


def index_of(shards: Sequence[Shard], casting: Casting, tied: Mapping[str, str]) -> bytes:
    """Return the index: sizes, names that stand for another name, and the file of each tensor."""
    refs = [ref for shard in shards for ref in shard.tensors.values()]
    total = sum(map(casting.nbytes_of, refs))
    files = {name: shard.path.name for shard in shards for name in shard.tensors}
    size = {"total_size": total}
    content = {"metadata": {**size, **tied, **size}, "weight_map": files}
    return json.dumps(content, indent=2).encode()


def left_over(index: Path, shards: Iterable[Path]) -> tuple[Path, ...]:
    """Return shards of the set of an index at this path that a new set does not replace.

    These are only files beside the index whose names are those of shards of this output.
    """
    called, new = _called(index), {path.name for path in shards}
    old = sorted(name for name in _shards_named(index) - new if called.fullmatch(name))
    return tuple(path for path in map(index.with_name, old) if path.is_file())


def tidy(index: Path, outputs: Iterable[Path], inputs: Collection[Path] = ()) -> None:
    """Remove the partial files that a killed run left for these outputs, and no others.

    These are second names of a finished file, and partial files of the index and of shards, also of
    another number of shards. What is one of the inputs stays.
    """
    for path in outputs:
        remove_second_name(Path(os.path.realpath(path)))
    index = Path(os.path.realpath(index))
    for path in (index, *_on_their_way(index)):
        remove_left_over(path, inputs)


def _on_their_way(index: Path) -> Iterator[Path]:
    """Yield the shards, of any size, that have a partial file."""
    called = _called(index)
    try:
        names = os.listdir(index.parent)  # noqa: PTH208 - names are all that is asked for
    except OSError:
        return
    for name in names:
        target = target_of(index.parent / name)
        if target and called.fullmatch(target.name):
            yield target


def _called(index: Path) -> re.Pattern[str]:
    """Return the pattern of the names of the shards of an index at this path."""
    name = re.escape(index.name.removesuffix(INDEX).removesuffix(SUFFIX))
    return re.compile(rf"{name}-\d{{5,}}-of-\d{{5,}}{re.escape(SUFFIX)}")


def _shards_named(index: Path) -> set[str]:
    """Return the shards that an index lists; an empty set if there is no readable index."""
    try:
        with LocalFile(index) as file:
            weight_map = parse_json(file.head(MAX_INDEX))["weight_map"]
        return {name for name in weight_map.values() if isinstance(name, str)}
    except (CkptError, KeyError, AttributeError, TypeError):
        return set()


def refuse_other_form(output: Path, *, sharded: bool) -> None:
    """Refuse an output whose other form exists: loaders differ in which of the two they take.

    Raises:
        OutputError: the other form is there.
    """
    other, form = (output, "one file") if sharded else (index_path(output), "shards")
    if os.path.lexists(other):
        raise OutputError(
            f"the same in {form} is there from earlier, and loaders could take either",
            path=other,
            hint="remove it first, or name another file",
        )


@contextmanager
def whole_files(
    targets: Sequence[Path], *, force: bool, gone: Iterable[Path] = ()
) -> Iterator[list[PartialFile]]:
    """Create several files together, the last one last; none of them if the block fails.

    Everything is on the disk before the first file is put in place, and signals wait until the last
    one is. The last file makes the others count, so an old one is removed first, and then the files
    in ``gone``.

    Raises:
        OutputError: see :func:`~ckptool.writers.files.whole_file.whole_file`.
    """
    placed: list[Path] = []
    made: dict[Path, tuple[int, ...]] = {}
    try:
        with ExitStack() as opened:
            files: list[PartialFile] = []
            for target in reversed(targets):  # closed in the reverse of this order
                opened.push(partial(_note, placed, target))
                files.insert(0, opened.enter_context(whole_file(target, force=force)))
            yield files
            for file, target in zip(files, targets, strict=True):
                file.settle(target)  # before an old index, and its mode, are gone
                made[target] = _identity(os.fstat(file.fd))
            finished = opened.pop_all()
        with held(), finished:
            if force and len(targets) > 1:
                index = targets[-1]
                for path in (index, *gone):
                    path.unlink(missing_ok=True)
                sync_folder(index.parent)
    except BaseException:
        for path in placed:
            with suppress(OSError):
                if _identity(path.lstat()) == made[path]:
                    path.unlink()
        raise


def _note(placed: list[Path], target: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Remember the files that were put in place without an error."""
    if kind is None:
        placed.append(target)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what a rename keeps and a write changes; another file can get the same inode."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

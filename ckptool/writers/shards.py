"""A state dict in several files, with the index by which Hugging Face's loaders find the tensors.

The files are ``model-00001-of-00003.safetensors`` … and ``model.safetensors.index.json``. They are
split and written as ``huggingface_hub.save_torch_state_dict`` does it. The tensors keep their
order. A new shard begins when the next tensor would exceed the size limit. A tensor that is larger
than the limit has a shard of its own.

The index makes the shards a checkpoint, so it marks completion. It is put in place last. When a set
is replaced, the old index is removed first, with those of its shards that the new set does not
have. So a loader finds a whole set or none. While files are put in place, a hidden journal lists
them. If a run is killed before the index is in place, the next run removes the files of the journal
that are unchanged, and nothing else.

Source: huggingface_hub 2.4 ``serialization/_base.py``, ``serialization/_torch.py``.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ckptool.errors import CkptError, OutputError, UsageError
from ckptool.formats.safetensors_file import parse_json
from ckptool.formats.sharded import MAX_INDEX
from ckptool.process.signals import held
from ckptool.sources.base import Source
from ckptool.sources.local import LocalFile
from ckptool.tensors.casting import Casting
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.partial import remove_second_name, taken_over, target_of
from ckptool.writers.files.whole_file import PartialFile, scratch_file, sync_folder, whole_file

INDEX = ".index.json"
JOURNAL = "begun"  # file name -> device, inode, bytes, time of the last change
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


def tidy(index: Path, outputs: Iterable[Path], inputs: Iterable[Source] = ()) -> None:
    """Remove the files that a killed run left for these outputs.

    These are second names, partial files (also of shards of another size), and shards without an
    index. Shards are removed only if the journal lists them, they are still the files that the run
    put in place, and they are not inputs.
    """
    for path in outputs:
        remove_second_name(Path(os.path.realpath(path)))
    index = Path(os.path.realpath(index))
    for path in (index, *_on_their_way(index)):
        with taken_over(path):
            pass
    kept = {source.identity for source in inputs}
    with taken_over(_journal_of(index)) as left:
        if left is None or os.path.lexists(index):
            return
        for name, identity in _journal_in(left).items():
            path = index.parent / os.path.basename(name)  # noqa: PTH119 - Path refuses some names
            is_ours = path.name == name and _identity(path) == identity
            if is_ours and tuple(identity[:2]) not in kept:
                path.unlink()


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


def _journal_of(index: Path) -> Path:
    return index.with_name(f"{index.name}.begun")


def _journal(files: Sequence[PartialFile], targets: Sequence[Path]) -> bytes:
    """Return the journal: the identities of files that are put in place beside the index."""
    folder = targets[-1].parent
    pairs = zip(files[:-1], targets[:-1], strict=True)
    begun = {at.name: _identity(file.path) for file, at in pairs if at.parent == folder}
    return json.dumps({JOURNAL: begun}).encode()


def _journal_in(left: Path) -> dict[str, list[int]]:
    try:
        with LocalFile(left) as file:
            begun = parse_json(file.head(MAX_INDEX)).get(JOURNAL)
    except CkptError:
        return {}
    return begun if isinstance(begun, dict) else {}


def _identity(path: Path) -> list[int] | None:
    """Return the identity of a regular file, which links and renames keep and writes change."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


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
            hint="remove it first, or name another output with -o",
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
    try:
        with ExitStack() as opened:
            files: list[PartialFile] = []
            index, has_index = targets[-1], len(targets) > 1
            if has_index:  # closed last
                journal = opened.enter_context(scratch_file(_journal_of(index), index))
            for target in reversed(targets):  # closed in the reverse of this order
                opened.push(partial(_note, placed, target))
                files.insert(0, opened.enter_context(whole_file(target, force=force)))
            yield files
            for file in files:
                file.sync()
            if has_index:
                journal.write(_journal(files, targets))
                journal.sync()
                sync_folder(index.parent)
            finished = opened.pop_all()
        with held(), finished:
            if force and has_index:
                for path in (index, *gone):
                    path.unlink(missing_ok=True)
                sync_folder(index.parent)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise


def _note(placed: list[Path], target: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Remember the files that were put in place without an error."""
    if kind is None:
        placed.append(target)

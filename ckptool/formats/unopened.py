"""Files in a directory that were not opened with its checkpoint or its run.

A directory holds more than its checkpoint: configurations, logs, and now and then a second set of
weights. A file that was not opened was neither checked nor compared, so a verdict on a directory
has to name these files. Whatever their number, those with the suffix of a checkpoint are all named.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ckptool.formats.base import Checkpoint
from ckptool.formats.folders import WEIGHTS
from ckptool.records import NamedTuple
from ckptool.sources.urls import RemotePath

CHECKPOINT_SUFFIXES = WEIGHTS | {".pkl", ".tar", ".pyt", ".model", ".th", ".t7"}
# Other programs use these suffixes too: SentencePiece, dumps of raw bytes, archives.
SHARED_SUFFIXES = frozenset({".model", ".bin", ".tar"})
MAX_FILES = 10_000  # without such a suffix that are listed below one directory


class Unopened(NamedTuple):
    """A file, or a part of the directory that cannot be listed."""

    name: str  # relative to the directory
    path: Path
    error: str = ""  # why it cannot be listed

    @property
    def says_checkpoint(self) -> bool:
        """True if it has the suffix of a checkpoint."""
        return self.path.suffix in CHECKPOINT_SUFFIXES

    @property
    def says_only_checkpoint(self) -> bool:
        """True if only checkpoints have its suffix."""
        return self.path.suffix in CHECKPOINT_SUFFIXES - SHARED_SUFFIXES


def unopened_files(checkpoint: Checkpoint) -> list[Unopened]:
    """Return the files below a checkpoint's directory that are no part of it; none for a file."""
    if not checkpoint.path.is_dir():
        return []
    return list(files_below(checkpoint.path, {*checkpoint.files}))


def files_below(folder: Path, opened: Collection[Path]) -> Iterator[Unopened]:
    """Yield the files below a directory, without those in ``opened``, in the order of names."""
    if isinstance(folder, RemotePath):
        yield from _not_fetched(folder, opened)
        return
    failed: list[OSError] = []
    others = 0
    for place, folders, names in os.walk(folder, onerror=failed.append):
        folders.sort()
        yield from _linked(folder, Path(place), folders)
        for name in sorted(names):
            path = Path(place, name)
            if path in opened:
                continue
            file = Unopened(str(path.relative_to(folder)), path)
            others += not file.says_checkpoint
            if file.says_checkpoint or others <= MAX_FILES:
                yield file
    if others > MAX_FILES:
        error = f"more than {MAX_FILES:,} files: {others - MAX_FILES:,} were not looked at"
        yield Unopened("other files", folder, error)
    for refusal in failed:
        path = Path(refusal.filename or folder)
        yield Unopened(str(path.relative_to(folder)), path, (refusal.strerror or "").lower())


def _linked(folder: Path, place: Path, names: list[str]) -> Iterator[Unopened]:
    """Yield the links to directories outside of a directory, which are not followed."""
    for path in (place / name for name in names):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            yield Unopened(str(path.relative_to(folder)), path, "a link to another directory")


def _not_fetched(folder: RemotePath, opened: Collection[Path]) -> Iterator[Unopened]:
    """Yield the other files directly in a directory behind a URL, which are not looked at."""
    for path in sorted(folder.iterdir()):
        if path not in opened and not any(path in file.parents for file in opened):
            yield Unopened(path.name, path, "not fetched")

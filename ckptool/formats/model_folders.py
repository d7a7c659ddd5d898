"""A folder in which each model has a folder of its own: diffusers' ``unet/`` and ``unet_ema/``.

Layout: ``<model>/<weights file>`` and ``<model>_ema/<weights file>`` with equal file names, beside
whatever else the trainer left (``optimizer.bin``, ``scheduler.bin``). The tree has a key for each
weights file: the folder's name, or for files of the folder itself their own name.

A folder is taken for a checkpoint only when a model and its marked twin are both there; other
folders are runs, listed file by file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ckptool.errors import CkptError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.markers import marker_in, unmarked

WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt"})
MAX_FILES = 256

OpenFile = Callable[[Path], Checkpoint]


class ModelFolders:
    """See the module's docstring."""

    name = "folder"

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    def matches(self, folder: Path) -> bool:
        """Two folders with a weights file of one name, one called like the other with a marker."""
        files = {(p.parent.name, p.name) for p in _weights_files(folder) if p.parent != folder}
        return any(marker_in([name]) and (unmarked(name), file) in files for name, file in files)

    def open(self, folder: Path) -> Checkpoint:
        """Every weights file as a part of one tree."""
        parts: dict[str, Checkpoint] = {}
        with ExitStack() as opened:
            for path in _weights_files(folder):
                key = path.name if path.parent == folder else path.parent.name
                parts[key] = opened.enter_context(_named(self._open_file, path))
            opened.pop_all()  # the checkpoint's reader owns the files now
        return Checkpoint(
            path=folder,
            format_name=self.name,
            size_bytes=sum(part.size_bytes for part in parts.values()),
            tree={key: part.tree for key, part in parts.items()},
            reader=TensorReader(*(file for part in parts.values() for file in part.reader.opened)),
            globals_named=tuple(named for part in parts.values() for named in part.globals_named),
        )


def _named(open_file: OpenFile, path: Path) -> Checkpoint:
    try:
        return open_file(path)
    except CkptError as error:
        raise error.at(path) from error.__cause__


def _weights_files(folder: Path) -> Iterator[Path]:
    """Weights files in the folder's folders, and in itself, sorted."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries[:MAX_FILES]:
        if entry.is_dir():
            yield from sorted(p for p in entry.iterdir() if p.suffix in WEIGHTS)[:1]
        elif entry.suffix in WEIGHTS:
            yield entry

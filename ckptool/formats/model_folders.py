"""A directory with a subdirectory for each model: diffusers' ``unet/`` and ``unet_ema/``.

Layout: ``<model>/<weights file>`` and ``<model>_ema/<weights file>`` with equal file names, next to
other files of the trainer (``optimizer.bin``, ``scheduler.bin``). The tree has a key for each
weights file: the name of its subdirectory, or its own name if it is in none.

The subdirectory of the EMA weights may be called ``ema`` alone, next to ``model``, if each holds
one weights file: with several in each, the subdirectories are those of a run.

A directory is a checkpoint only if it has a model both with and without a keyword such as ``ema``;
other directories are runs, listed file by file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ckptool.formats.base import Checkpoint
from ckptool.formats.folders import WEIGHTS, FolderOfFiles, OpenFile, all_or_none, joined
from ckptool.formats.sharded import ShardFolder
from ckptool.names import MODEL_FOLDER, marker_in, unmarked
from ckptool.sources.places import entries
from ckptool.tree.nodes import Tree

MAX_FILES = 256


class ModelFolders(FolderOfFiles):
    """See the module's docstring."""

    name = "folder"
    title = "folder of files"
    written_by = "diffusers: a folder with `unet/` and `unet_ema/` in it"
    file_kinds = (
        (r"(.*[_./-])?ema[_./-].*\.(bin|ckpt|pt|pth|safetensors)", "EMA weights"),
        (r"(.*model.*|.*weights.*|unet.*)\.(bin|ckpt|pt|pth|safetensors)", "weights"),
    )

    def matches(self, folder: Path) -> bool:
        """Return whether a model with a keyword and one without have a weights file of one name."""
        files = {(p.parent.name, p.name) for p in _weights_files(folder) if p.parent != folder}
        if any(marker_in([name]) and (unmarked(name), file) in files for name, file in files):
            return True
        bare = {file for name, file in files if marker_in([name]) and not unmarked(name)}
        models = {name for name, file in files if MODEL_FOLDER.fullmatch(name) and file in bare}
        return bool(models) and all(_has_one_file(folder / name) for name, _ in files)

    def open(self, folder: Path) -> Checkpoint:
        """Return one checkpoint with every weights file as a part of its tree."""
        parts: dict[str, Checkpoint] = {}
        with all_or_none() as opened:
            for path in _weights_files(folder):
                key = path.name if path.parent == folder else path.parent.name
                parts[key] = opened.enter_context(self._open_file(path))
        tree = {key: part.tree for key, part in parts.items()}
        return joined(self, folder, parts, tree)


class ModelFolder(FolderOfFiles):
    """A directory with one model: a file or shards with an index, and perhaps its EMA's state."""

    name = "folder"
    title = "folder of files"
    written_by = ModelFolders.written_by

    def __init__(self, open_file: OpenFile) -> None:
        super().__init__(open_file)
        self._shards = ShardFolder(open_file)

    def matches(self, folder: Path) -> bool:
        """Return whether there is a weights file in the directory."""
        return any(path.suffix in WEIGHTS for path in entries(folder))

    def open(self, folder: Path) -> Checkpoint:
        """Return the weights; with several files, each under its name."""
        if self._shards.matches(folder):
            return self._shards.open(folder)
        files = [path for path in entries(folder) if path.suffix in WEIGHTS]
        with all_or_none() as opened:
            parts = self._opened(opened, files)
        trees: dict[str, Tree] = {name: part.tree for name, part in parts.items()}
        tree = trees if len(trees) > 1 else next(iter(trees.values()))
        return joined(self, folder, parts, tree)


def _has_one_file(folder: Path) -> bool:
    return sum(path.suffix in WEIGHTS for path in entries(folder)) == 1


def _weights_files(folder: Path) -> Iterator[Path]:
    """Yield the weights files of the directory, and the first of each subdirectory, sorted."""
    for entry in entries(folder)[:MAX_FILES]:
        if entry.is_dir():
            yield from [path for path in entries(entry) if path.suffix in WEIGHTS][:1]
        elif entry.suffix in WEIGHTS:
            yield entry

"""Checkpoints of several files, opened together or not at all and joined into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ckptool.formats.base import Checkpoint, FolderFormat, Format, NamedGlobal, TensorReader
from ckptool.formats.safetensors_file import SafetensorsFile
from ckptool.formats.torch_zip import TorchZip
from ckptool.tree.nodes import Tree

WEIGHTS = frozenset({*SafetensorsFile.suffixes, *TorchZip.suffixes})  # suffixes of weights files

OpenFile = Callable[[Path], Checkpoint]  # its errors name the file


class FolderOfFiles(FolderFormat):
    """A directory with files each of which is a checkpoint by itself."""

    is_of_parts = True

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    def _opened(self, opened: ExitStack, paths: Iterable[Path]) -> dict[str, Checkpoint]:
        """Return the checkpoints in files by the names of the files, entered in ``opened``."""
        return {path.name: opened.enter_context(self._open_file(path)) for path in paths}


@contextmanager
def all_or_none() -> Iterator[ExitStack]:
    """Keep the checkpoints that are entered in the block open, unless the block fails."""
    with ExitStack() as opened:
        yield opened
        opened.pop_all()


def reader_of(files: Mapping[str, Checkpoint]) -> TensorReader:
    """Return the reader of the tensors of all files."""
    return TensorReader(*(source for part in files.values() for source in part.reader.opened))


def globals_by_file(files: Mapping[str, Checkpoint]) -> tuple[NamedGlobal, ...]:
    """Return the names in the pickles of all files, each with the name of its file."""
    return tuple(
        named._replace(pickle=f"{name}: {named.pickle}")
        for name, part in files.items()
        for named in part.globals_named
    )


def joined(
    kind: Format, path: Path, files: Mapping[str, Checkpoint], tree: Tree, **more: Any
) -> Checkpoint:
    """Return the checkpoint at ``path`` that consists of ``files``, which it then owns.

    The keys of ``files`` name them in what is told of their pickles, and in notes; ``more`` are
    further fields of the checkpoint.
    """
    fields: dict[str, Any] = {
        "size_bytes": sum(part.size_bytes for part in files.values()),
        "reader": reader_of(files),
        "globals_named": globals_by_file(files),
        "notes": tuple(
            note._replace(address=f"{name}: {note.address}" if note.address else name)
            for name, part in files.items()
            for note in part.notes
        ),
        "uncompared": tuple(each for part in files.values() for each in part.uncompared),
    }
    return Checkpoint(path=path, format=kind, tree=tree, **{**fields, **more})

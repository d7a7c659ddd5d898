"""Checkpoints of several files, opened together or not at all and joined into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ckptool.formats.base import Checkpoint, Format, NamedGlobal, TensorReader
from ckptool.formats.safetensors_file import SafetensorsFile
from ckptool.formats.torch_zip import TorchZip
from ckptool.tree.nodes import Tree

WEIGHTS = frozenset({*SafetensorsFile.suffixes, *TorchZip.suffixes})  # suffixes of weights files

OpenFile = Callable[[Path], Checkpoint]  # its errors name the file


@contextmanager
def all_or_none() -> Iterator[ExitStack]:
    """Keep the checkpoints that are entered in the block open, unless the block fails."""
    with ExitStack() as opened:
        yield opened
        opened.pop_all()


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

    The keys of ``files`` name them in the notes; ``more`` are further fields of the checkpoint.
    """
    fields: dict[str, Any] = {
        "size_bytes": sum(part.size_bytes for part in files.values()),
        "reader": TensorReader(*(f for part in files.values() for f in part.reader.opened)),
        "globals_named": tuple(named for part in files.values() for named in part.globals_named),
        "notes": tuple(
            note._replace(address=f"{name}: {note.address}" if note.address else name)
            for name, part in files.items()
            for note in part.notes
        ),
    }
    return Checkpoint(path=path, format=kind, tree=tree, **{**fields, **more})

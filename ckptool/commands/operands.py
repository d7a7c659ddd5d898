"""Operands of commands: a whole checkpoint, a part of it, or the checkpoints of a run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ckptool.contents.selection import ROLES, Operand, select_node
from ckptool.ema.layouts import Layouts
from ckptool.errors import CkptError, UnreadableError, about
from ckptool.formats import folder_format, open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.records import replace
from ckptool.sources.places import is_folder, known_size
from ckptool.sources.urls import RemotePath
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import is_container
from ckptool.tree.walking import children

MOST_KEYS = 10_000  # of a container


def as_operand(named: Path | Operand) -> Operand:
    """Return an operand; a path is a whole checkpoint."""
    return named if isinstance(named, Operand) else Operand(named)


def open_part(operand: Operand, layouts: Layouts = ()) -> Checkpoint:
    """Open a checkpoint; where the operand has an address, its tree is only the part there.

    Raises:
        CkptError: the file cannot be read, or has no such part.
    """
    checkpoint = open_checkpoint(operand.path)
    if operand.address is None:
        return checkpoint
    from ckptool.formats.folders import all_or_none  # noqa: PLC0415 - for a part only
    from ckptool.plans.weights import select_part  # noqa: PLC0415

    with about(operand.path), all_or_none() as opened:
        opened.enter_context(checkpoint)
        tree = select_part(checkpoint, operand.address, layouts)
        return replace(checkpoint, tree=tree, is_part=True)


def keys_at(path: str, container: str) -> list[str]:
    """Return the keys of a container, escaped as in key paths; containers end in a slash.

    Raises:
        CkptError: the file cannot be read, or has no such container.
    """
    with open_checkpoint(Path(path)) as checkpoint:
        node = select_node(checkpoint.tree, container)
        keys = [
            format_address((key,)) + ("/" if is_container(child) and children(child) else "")
            for key, child in islice(children(node), MOST_KEYS)
        ]
    return [*(ROLES if not container else ()), *keys]


def size_of_unread(path: Path, error: CkptError | None) -> int:
    """Return the bytes of a file that cannot be read; 0 where they are unknown."""
    if error is not None and error.size is not None and error.path == path:
        return error.size
    try:
        is_directory = not isinstance(path, RemotePath) and path.is_dir()  # a server is not asked
        return 0 if is_directory else known_size(path)
    except OSError:
        return 0


def files_of(path: Path) -> list[Path]:
    """Return the files that an operand consists of, over which nothing may be written.

    A directory or an index that cannot be opened may consist of every file in the directory.
    """
    from ckptool.formats.sharded import INDEX  # noqa: PLC0415 - what is only read needs none
    from ckptool.formats.unopened import files_below  # noqa: PLC0415

    try:
        if is_run(path):
            return [file for each in checkpoint_files(path) for file in files_of(each)]
        with open_checkpoint(path) as checkpoint:
            return [*checkpoint.files]
    except (CkptError, OSError, MemoryError, RecursionError):
        if not is_folder(path) and not path.name.endswith(INDEX):
            return [path]
        folder = path if is_folder(path) else path.parent
        return [path, *(file.path for file in files_below(folder, ()))]


MAX_LOOKED = 1_000  # files below a directory that are searched for a hint


def is_run(path: Path) -> bool:
    """Return whether the path is a directory, and not a checkpoint itself."""
    return is_folder(path) and folder_format(path) is None


def checkpoint_files(path: Path) -> list[Path]:
    """Return the checkpoints directly in a directory, by name: files and directory checkpoints.

    Raises:
        UnreadableError: it cannot be listed, or there are none.
    """
    try:
        files = sorted(filter(_is_checkpoint, path.iterdir()))
    except OSError as error:
        raise UnreadableError((error.strerror or str(error)).lower(), path=path) from error
    if not files:
        raise UnreadableError(
            "a directory without checkpoint files",
            path=path,
            hint=_place_within(path) or "name a file: it is read whatever its suffix",
        )
    return files


def _is_checkpoint(path: Path) -> bool:
    from ckptool.formats.unopened import CHECKPOINT_SUFFIXES  # noqa: PLC0415 - for runs only

    if path.suffix in CHECKPOINT_SUFFIXES and path.is_file():
        return True
    return folder_format(path) is not None


def _place_within(path: Path) -> str | None:
    """Return a hint: trainers put checkpoints a directory or two below the run's."""
    from ckptool.formats.unopened import CHECKPOINT_SUFFIXES  # noqa: PLC0415 - for runs only

    for pattern in ("*/*", "*/*/*"):
        looked = islice(path.glob(pattern), MAX_LOOKED)
        found = next((p for p in looked if p.suffix in CHECKPOINT_SUFFIXES), None)
        if found is not None:
            return f"there are some in {found.parent}"
    return None

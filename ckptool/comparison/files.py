"""Files in a directory operand that are no part of its checkpoint, compared byte by byte.

Each becomes a leaf at ``__files__/<name>`` whose value is the length and the SHA-256 of the file.
So files are paired, selected and reported like any other value. Unless both sides are directories,
only files that may be checkpoints count; the others (configurations, logs) are only named.
"""

from __future__ import annotations

import os
from hashlib import sha256

from ckptool.comparison.operands import Side
from ckptool.errors import CkptError
from ckptool.formats.unopened import Unopened, unopened_files
from ckptool.sources.places import open_file
from ckptool.sources.urls import RemotePath

FILES = "__files__"
BLOCK = 1 << 20


def hold_files(one: Side, other: Side) -> list[str]:
    """Add the files of both sides to their leaves.

    Returns:
        The files that are not compared, in words.
    """
    mine, theirs = _files(one), _files(other)
    are_folders = _is_folder(one) and _is_folder(other)
    said = [*_hold(one, mine, are_folders=are_folders)]
    return [*said, *_hold(other, theirs, are_folders=are_folders)]


def _is_folder(side: Side) -> bool:
    return (
        side.checkpoint is not None
        and side.operand.address is None
        and side.checkpoint.path.is_dir()
    )


def _files(side: Side) -> list[Unopened]:
    return unopened_files(side.checkpoint) if side.checkpoint and _is_folder(side) else []


def _hold(side: Side, files: list[Unopened], *, are_folders: bool) -> list[str]:
    passed_over: list[str] = []
    unread: list[str] = []
    for file in files:
        if not are_folders and not file.says_checkpoint:
            passed_over.append(file.name)
            continue
        error, value = _content(file)
        if error:
            unread.append(f"{file.path}: {error}")
            value = f"cannot be read in {side.text}"  # unequal to every value
        side.leaves[f"{FILES}/{file.name.replace(os.sep, '/')}"] = value
    if passed_over:
        shown = ", ".join(passed_over[:4]) + (", …" if len(passed_over) > 4 else "")
        unread.append(f"{len(passed_over)} files in {side.text} that are no checkpoint: {shown}")
    return unread


def _content(file: Unopened) -> tuple[str, str]:
    """Return (why the file cannot be read, the text that represents its bytes)."""
    is_far = isinstance(file.path, RemotePath) and not file.path.is_dir()  # not fetched so far
    if file.error and not is_far:
        return file.error, ""
    digest = sha256()
    try:
        with open_file(file.path) as source:
            source.lift()
            for at in range(0, source.size, BLOCK):
                digest.update(source.read(at, min(BLOCK, source.size - at)))
            return "", f"{source.size:,} bytes, sha256 {digest.hexdigest()}"
    except CkptError as error:
        return error.message, ""

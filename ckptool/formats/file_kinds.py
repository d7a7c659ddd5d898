"""The files of a checkpoint of several files: the number of each kind, and what they hold."""

from __future__ import annotations

import re
from collections import Counter

from ckptool.formats import folder_formats
from ckptool.formats.base import Checkpoint
from ckptool.records import NamedTuple
from ckptool.regex import regex

# Rows of all formats: one may hold files of another. The vaguest come last.
KINDS = [row for known in folder_formats() for row in known.file_kinds]
NUMBER = regex(r"\d+")


class FileKind(NamedTuple):
    """Files of one kind."""

    name: str  # of the file; of several, with * for the numbers that differ
    number: int
    holds: str | None  # None: the name does not tell


def file_kinds(checkpoint: Checkpoint) -> tuple[FileKind, ...]:
    """Return the files of a checkpoint that is a directory, in the order of their names."""
    files = (path for path in checkpoint.files if path != checkpoint.path)
    groups: dict[tuple[str, str | None], list[str]] = {}
    for path in dict.fromkeys(files):
        inside = path.parent != checkpoint.path and path.is_relative_to(checkpoint.path)
        below = f"{path.relative_to(checkpoint.path).parts[0]}/" if inside else ""
        name = below + path.name
        groups.setdefault((NUMBER.sub("*", name), _holds(name)), []).append(name)
    rows = [
        FileKind(names[0] if len(names) == 1 else _common(names), len(names), holds)
        for (_, holds), names in groups.items()
    ]
    return tuple(sorted(rows))


def _holds(name: str) -> str | None:
    return next((holds for pattern, holds in KINDS if re.fullmatch(f"(.*/)?{pattern}", name)), None)


def _common(names: list[str]) -> str:
    """Return the name that files have in common, with * for the numbers in which they differ."""
    rows = [NUMBER.findall(name) for name in names]
    between = NUMBER.split(names[0])
    kept = [column[0] if len(Counter(column)) == 1 else "*" for column in zip(*rows, strict=True)]
    return between[0] + "".join(a + b for a, b in zip(kept, between[1:], strict=True))

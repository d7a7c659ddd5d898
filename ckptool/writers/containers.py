"""How each container is copied for a promotion: a row a format.

A row copies the file into the output and says by how many bytes its values moved, and afterwards
brings up to date what the container keeps about its bytes. A format without a row cannot be
patched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ckptool.formats.base import SourceFile
from ckptool.formats.safetensors_file import read_header
from ckptool.numerics import Progress
from ckptool.provenance import KEY
from ckptool.tree import ByteSpan
from ckptool.writers import safetensors_file, zip_patch
from ckptool.writers.base import PartialFile
from ckptool.writers.patched_copy import Patch


class Container(NamedTuple):
    """A row of ``CONTAINERS``."""

    # Of the output, the file, what is written later, the note and the progress: by how many bytes
    # the values moved.
    copy: Callable[[PartialFile, SourceFile, Sequence[ByteSpan], str, Progress], int]
    # Of the output, the file, the patches, the checksums of what was made for them, and the note.
    finish: Callable[[PartialFile, SourceFile, Sequence[Patch], Mapping[str, int], str], None]


def _copy_whole(
    output: PartialFile,
    file: SourceFile,
    later: Sequence[ByteSpan],
    _note: str,
    progress: Progress,
) -> int:
    output.copy_file(file, progress, later)
    return 0


def _copy_behind_header(
    output: PartialFile,
    file: SourceFile,
    later: Sequence[ByteSpan],
    note: str,
    progress: Progress,
) -> int:
    """The same tensors behind a header that also holds the note."""
    header = read_header(file)
    output.need(file.size)
    output.write(safetensors_file.with_metadata(file, {**header.metadata, KEY: note}))
    shift = output.position - header.data_offset
    values = ByteSpan(file.path, header.data_offset, file.size - header.data_offset)
    output.copy_from(file, values, progress, later)
    return shift


def _nothing(
    _output: PartialFile,
    _file: SourceFile,
    _patches: Sequence[Patch],
    _checksums: Mapping[str, int],
    _note: str,
) -> None:
    """The container keeps nothing about its bytes."""


def _check_library(
    output: PartialFile,
    file: SourceFile,
    _patches: Sequence[Patch],
    _checksums: Mapping[str, int],
    _note: str,
) -> None:
    names = {entry.name for entry in read_header(file).entries}
    safetensors_file.check(output.path, names)


CONTAINERS: Mapping[str, Container] = {
    "torch-zip": Container(_copy_whole, zip_patch.finish),
    "torch-legacy": Container(_copy_whole, _nothing),
    "torch-tar": Container(_copy_whole, _nothing),
    "pickle": Container(_copy_whole, _nothing),
    "safetensors": Container(_copy_behind_header, _check_library),
}

"""The containers that a promotion can copy, each with functions to copy and to finish it.

``copy`` of a row of ``CONTAINERS`` copies the file into the output, and returns the number of bytes
by which its values moved. ``finish`` then updates what the container records about its bytes. A
patchable format without a row records nothing about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ckptool.formats.base import Checkpoint, Format
from ckptool.formats.provenance import KEY, LateNote, final
from ckptool.formats.safetensors_file import SafetensorsFile, read_header
from ckptool.formats.torch_zip import TorchZip
from ckptool.process.progress import Progress
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.writers import safetensors_file, zip_patch
from ckptool.writers.files.runs import Run
from ckptool.writers.files.whole_file import PartialFile
from ckptool.writers.patched_copy import Patch


class Container(NamedTuple):
    """A row of ``CONTAINERS``."""

    # (output, file, runs that are overwritten, bytes for some of them, note, progress)
    # -> bytes by which the values moved
    copy: Callable[[PartialFile, Source, Sequence[ByteSpan], Iterable[Run], str, Progress], int]
    # (output, file, patches, checksums of the values that were made for them, note)
    finish: Callable[[PartialFile, Source, Sequence[Patch], Mapping[str, int], str], None]


def _copy_whole(
    output: PartialFile,
    file: Source,
    later: Sequence[ByteSpan],
    moves: Iterable[Run],
    _note: str,
    progress: Progress,
) -> int:
    output.copy_file(file, progress, later, moves)
    return 0


def _copy_behind_header(
    output: PartialFile,
    file: Source,
    later: Sequence[ByteSpan],
    moves: Iterable[Run],
    note: str,
    progress: Progress,
) -> int:
    """Copy the tensors behind a header that also holds the note."""
    header = read_header(file)
    output.need(file.size)
    output.write(safetensors_file.with_metadata(file, {**header.metadata, KEY: note}))
    shift = output.position - header.data_offset
    values = file.span(header.data_offset, file.size - header.data_offset)
    output.copy_from(values, progress, later, moves)
    return shift


def _nothing(
    _output: PartialFile,
    _file: Source,
    _patches: Sequence[Patch],
    _checksums: Mapping[str, int],
    _note: str,
) -> None:
    """Do nothing: the container records nothing about its bytes."""


def _check_library(
    output: PartialFile,
    file: Source,
    _patches: Sequence[Patch],
    _checksums: Mapping[str, int],
    note: str,
) -> None:
    if isinstance(note, LateNote):
        header = {**read_header(file).metadata, KEY: final(note)}
        output.patch(safetensors_file.with_metadata(file, header), 0)
    names = {entry.name for entry in read_header(file).entries}
    safetensors_file.check(output.path, names)


# Containers that record something about their bytes; all others are copied as they are.
CONTAINERS: Mapping[type[Format], Container] = {
    TorchZip: Container(_copy_whole, zip_patch.finish),
    SafetensorsFile: Container(_copy_behind_header, _check_library),
}


def container_of(checkpoint: Checkpoint) -> Container:
    """Return the functions that copy the checkpoint, which is patchable."""
    return CONTAINERS.get(type(checkpoint.format), Container(_copy_whole, _nothing))

"""``open_checkpoint``, the loader that every command shares.

A file is recognised by its bytes, never by its suffix: people write zips called ``.ckpt``, pickles
called ``.pt`` and safetensors called ``.bin``. The error for any other file says what the file is,
since most are known accidents: a Git LFS pointer, a downloaded web page, an empty file.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from ckptool.errors import CkptError, UnknownFormatError, about
from ckptool.formats.base import Checkpoint, FileFormat, FolderFormat, Format
from ckptool.formats.ranked.lone import with_note_on_rank
from ckptool.formats.readings import with_other_readings
from ckptool.formats.torch_zip import TORCHSCRIPT, TorchZip
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.base import Source
from ckptool.sources.places import as_path, is_folder, open_file

HEAD_BYTES = 4096  # formats are recognised by them


def open_checkpoint(path: str | Path | Source) -> Checkpoint:
    """Open the checkpoint at ``path``; close it, or use it in a ``with``.

    A path leads to a file or a directory, here or behind a URL. A source of bytes is opened like a
    file, and belongs to the checkpoint from then on.

    Raises:
        UnreadableError: there is no file that can be read.
        UnknownFormatError: the file is no checkpoint; the message says what it looks like.
        DamagedError: the checkpoint breaks the rules of its format, or ends too soon.
        UnsupportedError: the checkpoint is valid, but holds something that cannot be represented.
    """
    if isinstance(path, Source):
        return with_note_on_rank(_open_as(path, file_formats()))
    path = as_path(path)
    folder = folder_format(path)
    if folder is None:
        return with_note_on_rank(_open_file(path))
    with about(path):
        return folder.open(path)


def folder_format(path: Path) -> FolderFormat | None:
    """Return the format of a directory that is one checkpoint; None for all other paths."""
    if not is_folder(path):
        return None
    return next((known for known in folder_formats() if known.matches(path)), None)


def _open_file(path: Path) -> Checkpoint:
    return _open_as(open_file(path), file_formats())


def _open_shard(path: Path) -> Checkpoint:
    """Open a shard, which is never an index: indices that name indices have no end."""
    return _open_as(open_file(path), _whole())


def _open_as(file: Source, formats: Iterable[FileFormat]) -> Checkpoint:
    try:
        known, checkpoint = _opened(file, formats)
        checkpoint = with_other_readings(checkpoint, file, known)
    except CkptError as error:
        file.close()
        of_folder = None
        if file.path and isinstance(error, UnknownFormatError):
            from ckptool.formats.trainer_folders import part_of_folder  # noqa: PLC0415 - rare

            of_folder = part_of_folder(file.path)
        refusal = (of_folder or error).at(file.place)
        if refusal.path == file.place:  # else it concerns a file of which this one is an index
            refusal.size = file.size
        raise refusal from error.__cause__
    except BaseException:
        file.close()
        raise
    file.lift()
    return checkpoint


def _open_member(file: Source) -> Checkpoint:
    """Open a file in an archive, which is never an archive: archives in archives have no end."""
    return _open_as(file, _members())


def _opened(file: Source, formats: Iterable[FileFormat]) -> tuple[FileFormat, Checkpoint]:
    """Open a file by the first format that takes it.

    Raises:
        UnknownFormatError: none does; it is the error of the first that recognised its beginning.
    """
    head = file.head(HEAD_BYTES)
    refusal: UnknownFormatError | None = None
    for known in _recognised(head, formats):
        try:
            return known, known.open(file)
        except UnknownFormatError as error:
            refusal = refusal or error
    raise refusal or not_a_checkpoint(head)


# The one that nearly all files have. The modules of the others are imported when it does not take a
# file: together they cost a tenth of the time in which a small file is inspected.
USUAL = TorchZip()


def _members() -> Iterator[FileFormat]:
    """Yield the formats of one file with one checkpoint; the vaguest come last."""
    yield USUAL
    from ckptool.formats.safetensors_file import SAFETENSORS  # noqa: PLC0415 - see above

    yield SAFETENSORS
    from ckptool.formats import others  # noqa: PLC0415 - see above

    yield from others.FILES


def _whole() -> Iterator[FileFormat]:
    """Yield the formats of files that need no other file."""
    yield from _members()
    yield from _archives()


def file_formats() -> Iterator[FileFormat]:
    """Yield the formats of files, in the order in which they are asked about a file."""
    formats = _whole()
    yield next(formats)  # a zip, whose first byte is no index's
    from ckptool.formats.sharded import ShardIndex  # noqa: PLC0415 - see USUAL

    yield ShardIndex(_open_shard)
    yield from formats


@cache
def _archives() -> tuple[FileFormat, ...]:
    """Return what begins as a zip or a tar of torch, is none, and may hold checkpoints."""
    from ckptool.formats import others  # noqa: PLC0415 - see USUAL

    return others.archives(_open_member)


@cache
def folder_formats() -> tuple[FolderFormat, ...]:
    """Return the formats of directories, in the order in which they are asked."""
    from ckptool.formats import directories  # noqa: PLC0415 - files need none of them

    return directories.folder_formats(_open_file)


def all_formats() -> Iterator[Format]:
    """Yield the formats of files and of directories."""
    yield from file_formats()
    yield TORCHSCRIPT
    yield from folder_formats()


def title_of(name: str) -> str:
    """Return what people call the format of a name."""
    return next((known.title for known in all_formats() if known.name == name), "") or name


def fits(known: Format, suffix: str) -> bool:
    """Return whether a file of the format may have the suffix; some are for one format alone."""
    if known.is_exclusive:
        return suffix in known.suffixes
    return not any(other.is_exclusive and suffix in other.suffixes for other in all_formats())


def _recognised(head: bytes, formats: Iterable[FileFormat]) -> Iterator[FileFormat]:
    """Yield the formats that may read a file: the first that matches, and then archives."""
    matching = (known for known in formats if known.matches(head))
    yield from islice(matching, 1)
    yield from (known for known in matching if known in _archives())


class Lookalike(NamedTuple):
    """A kind of file that is mistaken for a checkpoint: its first bytes, its name and a hint."""

    begins: re.Pattern[bytes]
    what: str
    hint: str | None = None
    is_accident: bool = False  # under any name, the file was to hold something else


def _begins(pattern: bytes) -> re.Pattern[bytes]:
    return regex(pattern, re.IGNORECASE | re.DOTALL)


def _unpacked_by(command: str) -> str:
    return f"a checkpoint is read in place: unpack it with {command}, then name what it unpacks to"


COMPRESSED = {
    "gzip": rb"\x1f\x8b", "zstd": rb"\x28\xb5\x2f\xfd", "xz": rb"\xfd7zXZ\0",
    "bzip2": rb"BZh[1-9]1AY&SY", "lz4": rb"\x04\x22\x4d\x18",
}  # fmt: skip
# fmt: off
LOOKALIKES = (
    Lookalike(_begins(rb"\Z"), "the file is empty",
              "the disk may have been full, or the copy did not begin; get the file again",
              is_accident=True),
    Lookalike(_begins(rb"version https://git-lfs\.github\.com/spec/"),
              "a Git LFS pointer, not the file that it points to",
              "git lfs pull fetches the file", is_accident=True),
    Lookalike(_begins(rb"(\xef\xbb\xbf)?\s*(<!--.*)?<(!doctype|html|head)"),
              "a web page, not a checkpoint",
              "the download got a page instead: a log-in, a licence to accept, a link to the page "
              "itself", is_accident=True),
    Lookalike(_begins(rb"(\xef\xbb\xbf)?\s*<\?xml"), "an XML document, not a checkpoint",
              "it may be the error message of a storage service: look into it with head"),
    *(
        Lookalike(_begins(magic), f"compressed with {by}",
                  _unpacked_by(f"{by} -dc FILE > UNPACKED"))
        for by, magic in COMPRESSED.items()
    ),
    Lookalike(_begins(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive", _unpacked_by("7z x FILE")),
    Lookalike(_begins(rb"\x89HDF\r\n\x1a\n"), "an HDF5 file, as Keras and h5py write it",
              "load it with the library that wrote it and save the weights as safetensors"),
    Lookalike(_begins(rb"\x93NUMPY"), "a numpy .npy file: one array without a name",
              "numpy.load reads it"),
    Lookalike(
        _begins(rb"\x08[\x01-\x1f]([\x12\x1a\x22][\x00-\x7f][\x20-\x7e]*|[\x3a\x42][\x00-\xff])"),
        "a protobuf message, as ONNX models are",
        "look for the checkpoint that it was exported from: ONNX keeps a graph with constants",
    ),
    Lookalike(_begins(rb".{4}(ET\d\d|TFL3)"),
              "a program for a device (ExecuTorch or TensorFlow Lite)",
              "look for the checkpoint that it was exported from"),
    Lookalike(_begins(rb"GGUF"), "a GGUF file, as llama.cpp reads it",
              "look for the checkpoint that it was converted from"),
    Lookalike(_begins(rb"PK\x05\x06"), "a zip archive with nothing in it", None),
    Lookalike(_begins(rb"\0{16,}\Z"), "nothing but zeros at the beginning",
              "space was set aside but never written: the writer was killed, or the disk was full",
              is_accident=True),
    Lookalike(_begins(rb"\s*[\[{]\s*([\"\[{\]}]|-?\d)"), "JSON, not a checkpoint",
              "look for the file with the weights beside it"),
)
# fmt: on


def not_a_checkpoint(head: bytes) -> UnknownFormatError:
    """Return an error that says what a file that no format recognises looks like."""
    for row in LOOKALIKES:
        if row.begins.match(head):
            error = UnknownFormatError(row.what, hint=row.hint)
            error.rule = "CK101" if row.is_accident else None
            return error
    if _is_text(head):
        return UnknownFormatError(
            "plain text, not a checkpoint",
            hint="look into it with head: it may say what went wrong",
        )
    return UnknownFormatError(f"no checkpoint format begins with the bytes {head[:8].hex(' ')}")


def _is_text(head: bytes) -> bool:
    """Return whether all of it is printable text; the last character may be cut off."""
    try:
        text = getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\n\r\f\v" for char in text)

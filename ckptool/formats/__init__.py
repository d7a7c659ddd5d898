"""``open_checkpoint``: the loader that every command shares.

A file is recognised by what it holds, never by its suffix: people write zips called ``.ckpt``,
pickles called ``.pt`` and safetensors called ``.bin``. What is no checkpoint is named too, since
most such files are known accidents: a Git LFS pointer, a web page that a download got instead, an
empty file.
"""

from __future__ import annotations

import os
import re
from codecs import getincrementaldecoder
from pathlib import Path
from typing import NamedTuple

from ckptool.errors import CkptError, UnknownFormatError
from ckptool.formats.base import Checkpoint, CheckpointFormat, FolderFormat, SourceFile
from ckptool.formats.dcp import DcpFolder
from ckptool.formats.model_folders import ModelFolders
from ckptool.formats.plain_pickle import PlainPickle
from ckptool.formats.safetensors_file import SafetensorsFile
from ckptool.formats.sharded import ShardFolder, ShardIndex
from ckptool.formats.torch_legacy import TorchLegacy
from ckptool.formats.torch_tar import TorchTar
from ckptool.formats.torch_zip import TorchZip

HEAD_BYTES = 4096  # what formats are recognised by


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``, a file or a folder; to be closed, or used in a ``with``.

    Raises:
        UnreadableError: there is no file that can be read.
        UnknownFormatError: a file, but no checkpoint; the message says what it looks like.
        DamagedError: a checkpoint that breaks the rules of its format, or ends too soon.
        UnsupportedError: a checkpoint in order that holds what cannot be represented.
    """
    path = Path(path)
    folder = folder_format(path)
    if folder is None:
        return _open_file(path)
    try:
        return folder.open(path)
    except CkptError as error:
        raise error.at(path) from error.__cause__


def folder_format(path: Path) -> FolderFormat | None:
    """The format of a folder that is one checkpoint; None for files and all other folders."""
    if not os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, it raises nothing
        return None
    return next((known for known in FOLDER_FORMATS if known.matches(path)), None)


def _open_file(path: Path) -> Checkpoint:
    return _open_as(path, FORMATS)


def _open_shard(path: Path) -> Checkpoint:
    """A file that holds values itself: an index of indices has no end."""
    return _open_as(path, WHOLE_FORMATS)


def _open_as(path: Path, formats: tuple[CheckpointFormat, ...]) -> Checkpoint:
    file = SourceFile(path)
    try:
        return _recognise(file.head(HEAD_BYTES), formats).open(file)
    except CkptError as error:
        file.close()
        raise error.at(path) from error.__cause__
    except BaseException:
        file.close()
        raise


# In this order: the ones with a signature of their own first, the vaguest last.
WHOLE_FORMATS: tuple[CheckpointFormat, ...] = (
    TorchZip(),
    SafetensorsFile(),
    TorchTar(),
    TorchLegacy(),
    PlainPickle(),
)
FORMATS: tuple[CheckpointFormat, ...] = (ShardIndex(_open_shard), *WHOLE_FORMATS)

FOLDER_FORMATS: tuple[FolderFormat, ...] = (
    DcpFolder(),
    ShardFolder(_open_file),
    ModelFolders(_open_file),
)


def _recognise(head: bytes, formats: tuple[CheckpointFormat, ...]) -> CheckpointFormat:
    for known in formats:
        if known.matches(head):
            return known
    raise not_a_checkpoint(head)


class Lookalike(NamedTuple):
    """A kind of file that is taken for a checkpoint: how it begins, what it is, what to do."""

    begins: re.Pattern[bytes]
    what: str
    hint: str | None = None


def _begins(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


_UNPACK = "unpack it first; a checkpoint is read in place, so it cannot stay compressed"

LOOKALIKES = (
    Lookalike(
        _begins(rb"\Z"),
        "the file is empty",
        "the disk may have been full, or the copy did not begin; get the file again",
    ),
    Lookalike(
        _begins(rb"version https://git-lfs\.github\.com/spec/"),
        "a Git LFS pointer, not the file that it stands for",
        "git lfs pull fetches the file",
    ),
    Lookalike(
        _begins(rb"(\xef\xbb\xbf)?\s*(<!--.*)?<(!doctype|html|head)"),
        "a web page, not a checkpoint",
        "the download got a page instead: a log-in, a licence to accept, a link to the page itself",
    ),
    Lookalike(
        _begins(rb"(\xef\xbb\xbf)?\s*<\?xml"),
        "an XML document, not a checkpoint",
        "it may be the error message of a storage service: look into it with head",
    ),
    Lookalike(_begins(rb"\x1f\x8b"), "compressed with gzip", _UNPACK),
    Lookalike(_begins(rb"\x28\xb5\x2f\xfd"), "compressed with zstd", _UNPACK),
    Lookalike(_begins(rb"\xfd7zXZ\0"), "compressed with xz", _UNPACK),
    Lookalike(_begins(rb"BZh[1-9]1AY&SY"), "compressed with bzip2", _UNPACK),
    Lookalike(_begins(rb"\x04\x22\x4d\x18"), "compressed with lz4", _UNPACK),
    Lookalike(_begins(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive", _UNPACK),
    Lookalike(
        _begins(rb"\x89HDF\r\n\x1a\n"),
        "an HDF5 file, as Keras and h5py write it",
        "load it with the library that wrote it and save the weights as safetensors",
    ),
    Lookalike(
        _begins(rb"\x93NUMPY"),
        "a numpy .npy file: one array without a name",
        "numpy.load reads it",
    ),
    Lookalike(
        _begins(rb"GGUF"),
        "a GGUF file, as llama.cpp reads it",
        "look for the checkpoint that it was converted from",
    ),
    Lookalike(_begins(rb"PK\x05\x06"), "a zip archive with nothing in it", None),
    Lookalike(
        _begins(rb"\0{16,}\Z"),
        "nothing but zeros at the beginning",
        "space was set aside but never written: the writer was killed, or the disk was full",
    ),
    Lookalike(
        _begins(rb"\s*[\[{]\s*([\"\[{\]}]|-?\d)"),
        "JSON, not a checkpoint",
        "look for the file with the weights beside it",
    ),
)


def not_a_checkpoint(head: bytes) -> UnknownFormatError:
    """What a file that no format recognises looks like, as an error."""
    for row in LOOKALIKES:
        if row.begins.match(head):
            return UnknownFormatError(row.what, hint=row.hint)
    if _is_text(head):
        return UnknownFormatError(
            "plain text, not a checkpoint",
            hint="look into it with head: it may say what went wrong",
        )
    return UnknownFormatError(f"no checkpoint format begins with the bytes {head[:8].hex(' ')}")


def _is_text(head: bytes) -> bool:
    """Whether all of it is printable; the last character may be cut in the middle."""
    try:
        text = getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\n\r\f\v" for char in text)

"""What is no checkpoint is named, with what to do about it; and what cannot be read at all."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os

import numpy as np
import pytest

from ckptool.errors import UnknownFormatError, UnreadableError
from ckptool.formats import HEAD_BYTES, file_formats, open_checkpoint
from helpers.paths import FIXTURES

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


LOOKALIKES = {
    "empty": (b"", "file is empty", "disk may have been full"),
    "git lfs": (POINTER, "Git LFS pointer", "git lfs pull"),
    "html": (b"<!DOCTYPE html>\n<html>", "a web page", "the download got a page"),
    "html behind a comment": (b"\n<!-- x -->\n<html lang='en'>", "a web page", "download"),
    "xml": (b"<?xml version='1.0'?><Error>Denied</Error>", "an XML document", "storage service"),
    "json": (json.dumps({"hidden_size": 64}).encode(), "JSON", "beside it"),
    "json list": (b"[1, 2]", "JSON", None),
    "text": ("Größe: 3\n".encode(), "plain text", "head"),
    "long text": ("ö".encode() * HEAD_BYTES, "plain text", "head"),
    "gzip": (gzip.compress(b"x" * 100), "compressed with gzip", "unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd", "unpack"),
    "xz": (lzma.compress(b"x" * 100), "compressed with xz", "unpack"),
    "bzip2": (bz2.compress(b"x" * 100), "compressed with bzip2", "unpack"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file", "safetensors"),
    "npy": (npy(), "a numpy .npy file", "numpy.load"),
    "gguf": (b"GGUF" + bytes(100), "a GGUF file", "converted from"),
    "zeros": (bytes(10_000), "nothing but zeros", "never written"),
    "empty zip": (b"PK\5\6" + bytes(18), "with nothing in it", None),
    "noise": (bytes(range(200, 256)) * 10, "begins with the bytes c8 c9 ca cb", "torch.save"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_what_is_no_checkpoint_is_named(kind, tmp_path):
    data, what, hint = LOOKALIKES[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(path)
    assert what in str(caught.value)
    assert caught.value.path == path
    assert hint is None or hint in caught.value.hint


# Formats that may read a file where the first that recognises it does not.
ALSO = {
    "torch-zip": [["zip-archive"]],
    "torch-tar": [["tar-archive"]],
    "torch-legacy": [["pickle"]],
    "pickle": [[]],
    "safetensors": [[]],
}


def test_each_file_belongs_to_one_format():
    """The order of the formats decides nothing for files in order."""
    folders = ("torch_zip", "torch_legacy", "torch_tar", "pickle", "numpy")
    for folder in folders:
        for path in sorted((FIXTURES / "formats" / folder).iterdir()):
            head = path.read_bytes()[:HEAD_BYTES]
            names = [known.name for known in file_formats() if known.matches(head)]
            assert names[1:] in ALSO[names[0]], path


def test_formats_have_names_of_their_own():
    names = [known.name for known in file_formats()]
    own = ["torch-zip", "sharded", "safetensors", "torch-tar", "torch-legacy", "pickle"]
    assert names == [*own, "zip-archive", "tar-archive"]


def test_missing_file(tmp_path):
    with pytest.raises(UnreadableError, match="no such file"):
        open_checkpoint(tmp_path / "none.pt")


def test_folder(tmp_path):
    with pytest.raises(UnreadableError, match="a directory"):
        open_checkpoint(tmp_path)


def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(UnreadableError, match="a pipe"):
        open_checkpoint(tmp_path / "pipe.pt")


def test_device():
    with pytest.raises(UnreadableError, match="a device"):
        open_checkpoint("/dev/null")


def test_path_with_a_null_character():
    with pytest.raises(UnreadableError):
        open_checkpoint("a\0b")


def test_name_that_is_too_long():
    with pytest.raises(UnreadableError, match="too long"):
        open_checkpoint("a" * 10_000)


def test_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UnreadableError, match="loop of symbolic links"):
        open_checkpoint(tmp_path / "a")


def test_link_to_a_checkpoint(tmp_path):
    path = FIXTURES / "formats" / "torch_zip" / "plain.pt"
    (tmp_path / "latest").symlink_to(path)
    with open_checkpoint(tmp_path / "latest") as checkpoint:
        assert checkpoint.path == tmp_path / "latest"
        assert checkpoint.size_bytes == path.stat().st_size

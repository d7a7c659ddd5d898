"""Files that are two: by the first bytes of one kind, by the suffix or the end of another."""

from __future__ import annotations

import io
import zipfile

import pytest

from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.readings import with_other_readings
from ckptool.formats.safetensors_file import SafetensorsFile
from ckptool.sources.memory import Memory
from helpers.two_faced import (
    EVIL,
    GOOD,
    HONEST,
    NOTHING,
    POLYGLOTS,
    legacy,
    safetensors,
    safetensors_and_tar,
    torch_zip,
)


def opened(data: bytes):
    with open_checkpoint(Memory(data, "model.pt")) as checkpoint:
        return checkpoint


@pytest.mark.parametrize(
    "begin",
    [NOTHING, legacy(), GOOD + bytes(1024), safetensors(b"", b"")],
    ids=["pickle", "legacy", "tar", "safetensors"],
)
def test_a_zip_at_the_end_is_told_and_read(begin):
    """Torch counts offsets from the file's beginning."""
    archive = torch_zip(EVIL, before=begin)
    if begin == safetensors(b"", b""):  # its values are the zip
        begin = safetensors(b"", bytes(len(archive)))[: -len(archive)]
        archive = torch_zip(EVIL, before=begin)
    checkpoint = opened(begin + archive)
    assert [note.rule for note in checkpoint.notes if note.rule != "CK107"] == ["CK110"]
    assert "posix.mkdir" in {named.ref.qualname for named in checkpoint.globals_named}


@pytest.mark.parametrize("name", ["data", "policy.pth"])
def test_a_zip_of_an_agent_at_the_end_is_refused(name):
    begin, stream = legacy(), io.BytesIO(legacy())
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(name, "{}")
    assert stream.getvalue().startswith(begin)
    with pytest.raises(DamagedError, match="two files in one"):
        opened(stream.getvalue())


def test_bytes_of_a_zip_inside_a_pickle_are_none_at_its_end():
    assert opened(HONEST["pickle-with-a-zip"]()).notes == ()


def test_a_tar_under_another_beginning_is_refused():
    with pytest.raises(DamagedError, match=r"two files in one.*safetensors.*tar archive"):
        opened(safetensors_and_tar())


def test_what_a_pickle_reader_would_run_is_told():
    checkpoint = opened(POLYGLOTS["safetensors-and-pickle"].make())
    assert [note.rule for note in checkpoint.notes] == ["CK110"]
    assert [named.ref.qualname for named in checkpoint.globals_named] == ["posix.mkdir"]


def test_most_lengths_of_safetensors_are_no_pickle():
    for length in range(0x100, 0x200):
        file = Memory(safetensors(b"", bytes(range(256)), length=length))
        checkpoint = SafetensorsFile().open(file)
        assert with_other_readings(checkpoint, file, SafetensorsFile()).notes == (), length

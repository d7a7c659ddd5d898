"""Names in a zip that say whose it is."""

from __future__ import annotations

import io
import zipfile

import pytest

from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.other_zips import refuse_checkpoints
from ckptool.sources.memory import Memory
from helpers.assembling import EMPTY_DICT, torch_zip


@pytest.mark.parametrize("name", ["data", "policy.pth", "a/b.ckpt", "model.safetensors"])
def test_a_checkpoint_among_the_records_is_refused(name):
    with pytest.raises(DamagedError, match="two files in one"):
        refuse_checkpoints(["archive/version", name])


def test_the_records_of_torch_are_no_checkpoints():
    refuse_checkpoints(
        [
            "archive/version",
            "archive/byteorder",
            "archive/code/m.py",
            "archive/extra/a.json",
            "a/data",
        ]
    )


def with_record(name: str) -> Memory:
    out = io.BytesIO(torch_zip(EMPTY_DICT))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(name, b"{}")
    return Memory(out.getvalue())


@pytest.mark.parametrize(
    "record", ["archive_format", ".data/extern_modules", "model.json", "Model.json"]
)
def test_a_file_of_torch_that_another_loader_takes_for_a_program_is_refused(record):
    with pytest.raises(DamagedError, match="two files in one"):
        open_checkpoint(with_record(f"archive/{record}"))


@pytest.mark.parametrize("record", ["archive/extra/model.json", "archive/.data/serialization_id"])
def test_other_records_of_those_names_are_no_programs(record):
    with open_checkpoint(with_record(record)) as checkpoint:
        assert checkpoint.format.name == "torch-zip"

"""The files of a folder that its checkpoint is not made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptool.formats import unopened
from ckptool.formats.unopened import Unopened, files_below


@pytest.fixture
def folder(tmp_path):
    for name in ("b.pt", "a.json", "logs/x.txt", "logs/old/y.bin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(folder, opened=()):
    return [each.name for each in files_below(folder, opened)]


def test_all_but_the_opened_are_listed_in_order(folder):
    assert names(folder) == ["a.json", "b.pt", "logs/x.txt", "logs/old/y.bin"]
    assert names(folder, {folder / "b.pt", None}) == ["a.json", "logs/x.txt", "logs/old/y.bin"]


def test_too_many_are_told_as_a_part_that_was_not_looked_at(folder, monkeypatch):
    """Those with the suffix of a checkpoint are all listed."""
    monkeypatch.setattr(unopened, "MAX_FILES", 1)
    *some, last = files_below(folder, ())
    assert [each.name for each in some] == ["a.json", "b.pt", "logs/old/y.bin"]
    assert last.error == "more than 1 files: 1 were not looked at"


def test_a_folder_that_cannot_be_listed_is_told(folder, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("logs"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    *_, refused = files_below(folder, ())
    assert (refused.name, refused.error) == ("logs", "permission denied")


@pytest.mark.parametrize(
    ("name", "says", "says_only"),
    [("a.pt", True, True), ("a.safetensors", True, True), ("a.bin", True, False),
     ("spm.model", True, False), ("a.json", False, False)],
)  # fmt: skip
def test_a_suffix_may_be_that_of_checkpoints_or_of_others_too(name, says, says_only):
    file = Unopened(name, Path(name))
    assert (file.says_checkpoint, file.says_only_checkpoint) == (says, says_only)

"""Where an output goes, and the format that its suffix chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptool.errors import UsageError
from ckptool.writers.files.destination import format_of, in_folder, output_path


def test_without_a_name_it_lies_beside_the_source():
    assert output_path(Path("runs/last.ckpt"), None) == Path("runs/last.ema.safetensors")


def test_the_name_of_a_folder_is_kept_whole(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-1.5"
    folder.mkdir()
    beside = tmp_path / "checkpoint-1.5.ema.safetensors"
    assert output_path(folder, None) == beside
    monkeypatch.chdir(folder)
    assert output_path(Path(), None) == beside


def test_a_folder_takes_the_file_under_its_own_name(tmp_path):
    assert output_path(Path("last.ckpt"), tmp_path) == tmp_path / "last.ema.safetensors"
    assert output_path(Path("last.ckpt"), tmp_path, "other.pt") == tmp_path / "other.pt"
    assert in_folder("new/", "x.pt") == Path("new/x.pt")
    assert in_folder("new", "x.pt") == Path("new")


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("a.safetensors", "safetensors"), ("a.pt", "torch-zip"), ("a.PTH", "torch-zip"),
     ("a.ckpt", "torch-zip"), ("a.bin", "torch-zip")],
)  # fmt: skip
def test_the_suffix_chooses_the_format(name, chosen):
    assert format_of(Path(name)) == chosen


@pytest.mark.parametrize("name", ["a", "a.npz", "a.pt.gz"])
def test_another_suffix_chooses_none(name):
    with pytest.raises(UsageError, match="no output format") as refused:
        format_of(Path(name))
    assert ".safetensors" in refused.value.hint

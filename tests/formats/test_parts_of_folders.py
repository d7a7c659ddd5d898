"""What is found in a file is found in each directory that it is a part of, and by its index."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ckptool.errors import CkptError
from ckptool.formats import folder_format, folder_formats, open_checkpoint
from helpers.paths import FIXTURES
from helpers.thinned import slow


def shards_of_torch(folder: Path) -> Path:
    """Shards of torch.save with an index."""
    folder.mkdir()
    names = [f"pytorch_model-{i:05d}-of-00002.bin" for i in (1, 2)]
    for i, name in enumerate(names):
        torch.save({f"layers.{i}.weight": torch.ones(4, 4) + i}, folder / name)
    weight_map = {f"layers.{i}.weight": name for i, name in enumerate(names)}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def models(folder: Path) -> Path:
    """A directory with a directory for each model."""
    for part in ("unet", "unet_ema"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        torch.save({"w": torch.ones(3)}, folder / part / "diffusion_pytorch_model.bin")
    return folder


def fixture(*parts: str) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(FIXTURES.joinpath(*parts), folder))


def lightning(folder: Path) -> Path:
    """A plan with tensors, and the rest in a file of its own."""
    shutil.copytree(FIXTURES / "genuine" / "torch_dcp" / "checkpoint", folder)
    torch.save({"epoch_of_run": 3}, folder / "meta.pt")
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "shards": shards_of_torch,
    "models": models,
    "trainer": fixture("genuine", "hf_trainer", "run", "checkpoint-4"),
    "accelerate": fixture("genuine", "accelerate", "checkpoints", "checkpoint_0"),
    "ranks": fixture("sharded", "ranks", "columns"),
    "zero": fixture("genuine", "deepspeed", "zero1"),
    "lightning": lightning,
    "universal": fixture("sharded", "universal", "stage2_many"),
}


def with_wrong_checksum(path: Path) -> None:
    """The checksum of the pickle is that of other bytes (CK112)."""
    data = bytearray(path.read_bytes())
    at = -1
    while (at := data.find(b"PK", at + 1)) >= 0:
        head, name_at = data[at + 2 : at + 4], {b"\x01\x02": (16, 46), b"\x03\x04": (14, 30)}
        crc, name = name_at.get(bytes(head), (0, 0))
        if crc and b"data.pkl" in data[at + name : at + name + 60]:
            data[at + crc] ^= 1
    path.write_bytes(data)


def with_another_pickle(path: Path) -> None:
    """A second pickle in the archive that breaks off (CK113)."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/more.pkl", b"\x80\x02}q\x00(X")


def with_bytes_behind(path: Path) -> None:
    """Bytes behind the end of the archive (CK111, CK107)."""
    path.write_bytes(path.read_bytes() + b"\x80\x02}.")


FAULTS = {
    "CK112": with_wrong_checksum, "CK113": with_another_pickle, "CK111": with_bytes_behind,
}  # fmt: skip


def found(path: Path) -> set[str]:
    """The rules of what is found while a checkpoint is opened."""
    try:
        with open_checkpoint(path) as checkpoint:
            return {note.rule for note in checkpoint.notes}
    except CkptError as error:
        return {error.rule or "an error"}


def parts_of(folder: Path) -> Iterator[Path]:
    """The zips of torch in a directory, which open alone; a plan's shards do not."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".distcp" and path.read_bytes()[:2] == b"PK":
            yield path


@pytest.mark.parametrize("rule", FAULTS)
@pytest.mark.parametrize(
    "name",
    [slow(name) if name == "universal" else name for name in FOLDERS],  # of thirty files
)
def test_what_is_found_in_a_part_is_found_in_the_whole(name, rule, tmp_path, ckptool):
    folder = FOLDERS[name](tmp_path / name)
    assert folder_format(folder) is not None
    parts = [*parts_of(folder)]
    indices = sorted(folder.rglob("*.index.json"))
    for part in parts:
        sound = part.read_bytes()
        FAULTS[rule](part)
        alone = found(part)
        assert rule in alone, part
        for whole in (folder, *indices):
            assert rule in found(whole), (whole, part)
            verdict = ckptool("verify", whole, "--json")
            assert rule in {said["rule"] for said in verdict.json["findings"]}, (whole, part)
            assert verdict.exit_code == 1 or rule != "CK112"
        part.write_bytes(sound)
    assert parts


def test_every_format_of_a_directory_is_tried(tmp_path):
    """A new one gets a row, or says here why it has no archive of torch among its files."""
    tried = {type(folder_format(make(tmp_path / name))).__name__ for name, make in FOLDERS.items()}
    without = {
        "DcpFolder",  # its files open with their plan alone
        "DcpSafetensorsFolder",  # no pickle
        "UnpackedZip",  # each file is a record
    }
    assert tried | without == {type(known).__name__ for known in folder_formats()}

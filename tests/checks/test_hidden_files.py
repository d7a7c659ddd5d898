"""A file that would run code is told wherever it lies in a directory of many others."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import zlib

import pytest
from safetensors.torch import save_file
from torch import zeros

from ckptool.formats import other_records, unopened
from helpers.assembling import call, program, text
from helpers.paths import FIXTURES
from helpers.two_faced import END, GOOD, legacy, zipped
from helpers.unpacked import array, plain_array

RUNS = program(call("os.system", text("true")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A trainer's directory with more files than are looked at."""
    monkeypatch.setattr(unopened, "MAX_FILES", 5)
    save_file({"w": zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_text(json.dumps({"epoch": 1}))
    for number in range(1_200):
        (tmp_path / f"n{number:05}.txt").touch()
    return tmp_path


def told(output) -> set[str]:
    return {found["rule"] for found in output.json["findings"]}


def test_filler_does_not_hide_a_trainers_file(folder, ckptool):
    (folder / "optimizer.pt").write_bytes(RUNS)
    output = ckptool("verify", folder, "--json")
    assert output.exit_code == 1
    assert "CK201" in told(output)


def test_filler_does_not_hide_a_file_with_a_checkpoints_suffix_below(folder, ckptool):
    below = folder / "z" / "below"
    below.mkdir(parents=True)
    (below / "other.pth").write_bytes(RUNS)
    output = ckptool("verify", folder, "--json")
    assert output.exit_code == 1
    assert "CK201" in told(output)


def test_what_was_not_looked_at_is_not_called_safe(folder, ckptool):
    (folder / "z_without_a_suffix").write_bytes(RUNS)
    output = ckptool("verify", folder, "--json")
    states = {check["rule"]: check["state"] for check in output.json["checks"]}
    assert states["CK201"] == "not-checked"
    assert "were not looked at" in str(output)
    assert ckptool("verify", folder, "--require", "safe").exit_code == 1


def test_a_format_without_pickles_does_not_hide_a_pickle_beside_it(tmp_path, ckptool):
    shards = tmp_path / "rows"
    shutil.copytree(FIXTURES / "sharded" / "dcp_safetensors" / "rows", shards)
    assert ckptool("verify", shards).exit_code == 0
    (shards / "payload").write_bytes(RUNS)
    output = ckptool("verify", shards, "--json")
    assert output.exit_code == 1
    assert "CK201" in told(output)


LONG = 1 << 13  # bytes of a text that is not unpacked whole
LOADED_BY_OTHERS = {
    "x.npy": array(RUNS),
    "x.npz": zipped(("x.npy", array(RUNS))),
    "x.gz": gzip.compress(RUNS),
    "x.gz.2": gzip.compress(b"") + gzip.compress(RUNS),
    "x.z": zlib.compress(RUNS),
    "x.bz2": bz2.compress(RUNS),
    "x.xz": lzma.compress(RUNS),
    "x.lzma": lzma.compress(RUNS, lzma.FORMAT_ALONE),
    "x.long": gzip.compress(b"\x80\x04C\xff" + bytes(255) + b"0" + legacy() * 99 + RUNS),
    "x.dat": b"I0x1\n0" + RUNS,
    "x.called": b"I0x1\n0" + program(call("somelib.work", text("true"))),
}
HARMLESS = {
    "x.npy": plain_array(),
    "x.npz": zipped(("x.npy", plain_array())),
    "log.gz": gzip.compress(b"cat\ndog\n" * LONG),
    "x.zip": zipped(("notes.txt", b"os\nsystem\n")),
}


@pytest.fixture
def beside(tmp_path):
    """A directory of a trainer, to which files can be added."""
    save_file({"w": zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_text(json.dumps({"epoch": 1}))
    return tmp_path


@pytest.mark.parametrize("name", LOADED_BY_OTHERS)
def test_what_numpy_or_joblib_would_run_is_told(name, beside, ckptool):
    (beside / name).write_bytes(LOADED_BY_OTHERS[name])
    output = ckptool("verify", beside, "--json")
    assert output.exit_code == 1
    assert told(output) & {"CK101", "CK201"}


@pytest.mark.parametrize("name", HARMLESS)
def test_arrays_of_numbers_and_compressed_text_are_safe(name, beside, ckptool):
    (beside / name).write_bytes(HARMLESS[name])
    assert ckptool("verify", beside, "--require", "safe").exit_code == 0


@pytest.mark.parametrize("archive", [GOOD + END, zipped(("x.npy", array(RUNS)))])
def test_a_compressed_archive_is_not_looked_at(archive, beside, ckptool):
    (beside / "x.tgz").write_bytes(gzip.compress(archive))
    output = ckptool("verify", beside, "--json")
    states = {check["rule"]: check["state"] for check in output.json["checks"]}
    assert states["CK201"] == "not-checked"


def test_more_arrays_than_are_looked_at_are_not_called_safe(beside, monkeypatch, ckptool):
    monkeypatch.setattr(other_records, "MAX_UNNAMED", 2)
    for count, state in ((2, "passed"), (3, "not-checked")):
        records = [(f"{n}.npy", array(program(text("a")))) for n in range(count)]
        (beside / "x.npz").write_bytes(zipped(*records))
        output = ckptool("verify", beside, "--json")
        assert {c["rule"]: c["state"] for c in output.json["checks"]}["CK201"] == state


@pytest.mark.parametrize(("inside", "state"), [(True, "passed"), (False, "not-checked")])
def test_a_link_out_of_the_directory_is_not_followed(inside, state, tmp_path, beside, ckptool):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in [*beside.iterdir()]:
        if path.is_file():
            path.rename(folder / path.name)
    target = (folder if inside else tmp_path) / "target"
    target.mkdir()
    (folder / "latest").symlink_to(target)
    output = ckptool("verify", folder, "--json")
    assert {c["rule"]: c["state"] for c in output.json["checks"]}["CK201"] == state

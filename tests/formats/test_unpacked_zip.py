"""A torch zip that was unpacked: the same checkpoint, from a directory."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest
import torch

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats import open_checkpoint
from helpers.judge import assert_reads_like


def state():
    return {"model": {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(3)}, "epoch": 3}


@pytest.fixture
def folder(tmp_path):
    torch.save(state(), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "whole"


def test_reads_alike(folder):
    assert_reads_like(folder, state())


def test_every_command_takes_it(folder, ckptool, tmp_path):
    whole = tmp_path / "whole.pt"
    assert ckptool("inspect", folder, "--json").json["format"] == "unpacked-zip"
    assert ckptool("verify", folder).exit_code == 0
    assert ckptool("diff", f"{folder}#@model", f"{whole}#@model").exit_code == 0
    out = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", f"{folder}#model", "-o", out).exit_code == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "data" / "0").unlink(), "data/0 is missing"),
        (lambda f: (f / "data" / "0").write_bytes(b"12"), "has 2 of 24 bytes"),
        (lambda f: (f / "byteorder").write_text("middle"), "neither little nor big"),
        (lambda f: (f / "data.pkl").write_bytes(b"\x80\x02}"), "ends|end"),
    ],
)
def test_damage_is_told(folder, damage, said):
    damage(folder)
    with pytest.raises(DamagedError, match=said):
        open_checkpoint(folder).close()


@pytest.mark.parametrize("key", ["../data.pkl", "..", "", "/etc/passwd", "a/b"])
def test_a_key_never_leads_out_of_the_directory(folder, key):
    data = (folder / "data.pkl").read_bytes()
    old = b"X\x01\x00\x00\x000"
    assert old in data
    new = b"X" + len(key).to_bytes(4, "little") + key.encode()
    (folder / "data.pkl").write_bytes(data.replace(old, new, 1))
    with pytest.raises(DamagedError, match="leads out of the directory"):
        open_checkpoint(folder).close()


def test_another_pickle_is_read_too(folder, ckptool):
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert ckptool("verify", folder).exit_code == 1


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
sys.argv = ["ckptool", "inspect", sys.argv[1], "--json"]
from ckptool.__main__ import run
run()
"""
AS_LIBRARY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
from ckptool.errors import UnreadableError
from ckptool.formats import open_checkpoint
try:
    open_checkpoint(sys.argv[1])
except UnreadableError as error:
    print(error.message, error.hint)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def of_many_files(tmp_path):
    torch.save({str(n): torch.full((1,), n) for n in range(200)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "whole"


def run(code, folder) -> str:
    command = [sys.executable, "-c", code, folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_command_line_opens_more_files_than_are_allowed_at_first(tmp_path):
    assert json.loads(run(MANY, of_many_files(tmp_path)))["tensors"]["count"] == 200


def test_the_library_leaves_the_limits_of_its_process_alone(tmp_path):
    said = run(AS_LIBRARY, of_many_files(tmp_path))
    assert "too many open files" in said
    assert "ulimit -n 4096" in said
    assert said.endswith("(64, 4096)\n")


@pytest.mark.parametrize("name", ["constants.pkl", "code"])
def test_code_of_torchscript_is_not_passed_over(folder, name):
    (folder / name).mkdir()
    with pytest.raises(UnsupportedError, match="TorchScript") as caught:
        open_checkpoint(folder)
    assert "zip -0 -r" in caught.value.hint

"""Pickles that a container hides: whatever a loader runs, ``verify`` reports."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from ckptool.commands.verify import Request, verify_file
from ckptool.errors import CkptError
from ckptool.formats.tar_members import is_tar
from helpers.output import environment
from helpers.two_faced import BLOCK, CANARY, HIDDEN, HONEST, LOADERS

MUTANTS = 1_000

FORK = """
import json, os, sys, warnings
import torch
warnings.simplefilter("ignore")
torch.jit.load  # is imported before the fork
ran = []
for name, path, code in json.load(sys.stdin):
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            exec(code, {"torch": torch, "PATH": path})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if os.path.exists("canary"):
        ran.append(name)
        (os.rmdir if os.path.isdir("canary") else os.remove)("canary")
print(json.dumps(ran))
"""


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_loader_runs_does_not_pass(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(HIDDEN[name].make())
    assert not passes(path)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", HONEST)
def test_honest_files_with_the_same_features_pass(name, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(HONEST[name]())
    report = verify_file(path, Request())
    assert report.ok
    assert not [found for found in report.findings if found.severity != "info"]


@pytest.mark.slow
def test_the_loader_runs_each(tmp_path):
    """Otherwise the rows above would show nothing."""
    asked = []
    for name, row in HIDDEN.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(row.make())
        asked.append((name, str(path), LOADERS[row.loader]))
    assert run_by_loaders(asked, tmp_path) == HIDDEN.keys()


@pytest.mark.slow
def test_no_loader_runs_a_mutant_that_passes(tmp_path):
    chance = random.Random(1)
    files = [row.make() for row in HIDDEN.values()]
    asked = []
    for number in range(MUTANTS):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(mutant(chance.choice(files), chance))
        if passes(path):
            asked += [(f"{number} {name}", str(path), code) for name, code in LOADERS.items()]
    assert len(asked) > MUTANTS // 10  # if none passed, the test would show nothing
    assert run_by_loaders(asked, tmp_path) == set()


def mutant(data: bytes, chance: random.Random) -> bytes:
    """A file with a few bytes of its headers changed; those of a tar have right checksums."""
    changed = bytearray(data)
    headers = [at for at in range(0, len(data), BLOCK) if is_tar(data[at : at + BLOCK])]
    for _ in range(chance.randint(1, 3)):
        begin = chance.choice(headers or [0, max(0, len(data) - BLOCK)])
        at = min(begin + chance.randrange(BLOCK), len(data) - 1)
        changed[at] = chance.choice(b"\0\1\x80\xff /.(017KLgxRpickle")
    for at in headers:
        changed[at + 148 : at + 156] = b" " * 8
        changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + BLOCK])
    return bytes(changed)


def run_by_loaders(asked: list[tuple[str, str, str]], tmp_path) -> set[str]:
    """The names of (name, path, code) whose code runs the payload of the file."""
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FORK], input=json.dumps(asked), capture_output=True, text=True,
        cwd=folder, env=environment(), check=True,
    )  # fmt: skip
    return set(json.loads(done.stdout))


def passes(path) -> bool:
    try:
        return verify_file(path, Request()).ok
    except CkptError:  # exit code 2
        return False

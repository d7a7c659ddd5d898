"""On a system like Windows, all that reads works, and what writes is refused with a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.output import Output, environment
from helpers.paths import FIXTURES, REPOSITORY

LATE = FIXTURES / "ema/has_ema/late.pt"
READING = (
    ("inspect", LATE, "--stats"),
    ("inspect", FIXTURES / "genuine/fsdp2/checkpoint", "--digests", "--json"),
    ("inspect", FIXTURES / "genuine/ultralytics/last.pt"),
    ("inspect", FIXTURES / "resume"),
    ("verify", LATE, "--bytes", "--values"),
    ("verify", FIXTURES / "genuine/deepspeed/zero2", "--require", "intact"),
    ("diff", LATE, FIXTURES / "ema/has_ema/partial.pt"),
    ("diff", f"{LATE}#@ema", LATE.with_suffix(".averaged.safetensors")),
    ("textconv", LATE),
    ("rule", "CK101"),
    ("layouts",),
)


BESIDE_THE_TESTS = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY / "tests"), str(REPOSITORY)))}


def on_windows(*args: object) -> Output:
    command = [sys.executable, "-m", "helpers.windows", *map(str, args)]
    done = subprocess.run(
        command, env=environment(BESIDE_THE_TESTS), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    return Output.of(done.stdout, done.stderr, done.returncode)


@pytest.mark.parametrize("args", READING, ids=lambda args: "-".join(Path(a).name for a in args[:2]))
def test_what_reads_gives_the_same_answer(args, ckptool):
    here, there = ckptool(*args), on_windows(*args)
    assert (there, there.stderr, there.exit_code) == (here, here.stderr, here.exit_code)


@pytest.mark.parametrize(
    "args",
    [
        ("extract-ema", LATE, "-o", "ema.pt"),
        ("extract-ema", LATE, "-o", "ema.pt", "--dry-run"),
        ("promote-ema", LATE, "-o", "promoted.pt"),
        ("promote-ema", LATE, "--in-place"),
        ("convert", f"{LATE}#@model", "-o", "model.safetensors"),
        ("average", FIXTURES / "resume", "-o", "mean.safetensors"),
        ("verify", LATE, "--report", "junit=verdict.xml"),
    ],
    ids=lambda args: "-".join(map(str, args[::3])),
)
def test_what_writes_is_refused_with_the_way_on(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = on_windows(*args)
    assert done.exit_code == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "writes no checkpoints on Windows" in error
    assert "WSL" in hint
    assert list(tmp_path.iterdir()) == []

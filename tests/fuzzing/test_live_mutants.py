"""Checkpoints of libraries with a few bytes changed read as torch reads them, or are refused."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.output import environment

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("mode", ["extract", "whole", "promote"])
@pytest.mark.parametrize(
    "seeds", [(0, 60), pytest.param((60, 600), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_changed_checkpoints_are_what_torch_loads(seeds, mode):
    """In a process of its own: torch crashes on some files that no pickler writes."""
    paths = os.pathsep.join((environment()["PYTHONPATH"], str(HERE.parent)))
    done = subprocess.run(
        [sys.executable, HERE / "live_mutants.py", *map(str, seeds), mode],
        env=environment({"PYTHONPATH": paths}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counted = ast.literal_eval(done.stdout)
    assert counted.get("compared", 0) + counted.get("extracted", 0) >= (seeds[1] - seeds[0]) // 20

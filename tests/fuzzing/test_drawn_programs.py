"""Drawn programs of opcodes read as torch reads them, or are refused."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from helpers.output import environment

HERE = Path(__file__).resolve().parent
PROGRAMS = 300


def test_drawn_programs_have_the_weights_of_torch():
    """In a process of its own: torch crashes on some files that no pickler writes."""
    paths = os.pathsep.join((environment()["PYTHONPATH"], str(HERE.parent)))
    done = subprocess.run(
        [sys.executable, HERE / "same_weights.py", "0", str(PROGRAMS)],
        env=environment({"PYTHONPATH": paths}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ast.literal_eval(done.stdout)["same"] > PROGRAMS // 5

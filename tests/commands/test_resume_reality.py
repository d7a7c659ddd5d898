"""The word of ``verify --require resume`` against reality, on runs that are killed as they save.

The small form of ``benchmarks/resume_reality.py``: a loop that saves over its last file, one that
renames, one that leaves numpy's random state out, and torch.distributed.checkpoint, killed before
each call that changes a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from helpers.output import environment
from helpers.paths import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "resume_reality.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each kill is one of a fork")
@pytest.mark.parametrize("trainer", ["plain", "plain-atomic", "plain-no-numpy", "dcp"])
def test_no_killed_save_is_ok_that_does_not_resume(trainer):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), trainer, "--by-calls", "--json"],
        capture_output=True, text=True, env=environment(), timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    (outcome,) = json.loads(done.stdout.splitlines()[-1])
    assert outcome["faults"] == []
    assert (outcome["said"], outcome["to_the_bit"]) == ("to-the-bit", True)
    answers = {(tried["word"], tried["outcome"]) for tried in outcome["tried"]}
    assert answers == {(True, "equal"), (False, "fails")}

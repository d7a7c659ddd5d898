"""The input is opened for reading only, never mapped, and stays as it was."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from scenes import SCENES

from helpers.output import environment
from helpers.paths import contents

COPIES = [scene for scene in SCENES if "--in-place" not in scene.args]


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_the_input_is_opened_for_reading_and_not_mapped(scene, stage):
    done = stage.play(scene, witness=scene.input)
    assert done.code == 0, done
    assert set(done.calls) == {f"open:{os.O_RDONLY}"}


@pytest.mark.parametrize("scene", COPIES, ids=str)
def test_nothing_about_the_input_changes(scene, stage):
    stage.play(scene)
    before = contents(stage.folder)[stage.folder / scene.input]
    args = (*scene.args, "--force") if scene.again else scene.args
    assert stage.driver(stage.folder, args).code == 0
    assert contents(stage.folder)[stage.folder / scene.input] == before


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_the_kernel_sees_the_same(scene, stage, tmp_path):
    """Also what libraries do that are not Python."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    for name, content in stage.before(scene).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-o", trace, "-e", "trace=openat,open,mmap,truncate"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "ckptool", *scene.args],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr.lower():
        pytest.skip("processes may not be traced here")
    assert done.returncode == 0, done
    calls = [line for line in trace.read_text().splitlines() if is_about(line, scene.input)]
    assert calls
    assert all("openat(" in line and "O_RDONLY" in line for line in calls), calls


def is_about(line: str, name: str) -> bool:
    return re.search(rf'[/"]{re.escape(name)}[">]', line) is not None

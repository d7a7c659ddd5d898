"""Several processes give the report of one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from output import environment


@pytest.fixture
def paths(tmp_path):
    torch.manual_seed(0)
    one = {f"layers.{i}": torch.randn(700_000) for i in range(8)}
    one |= {"codes": torch.randn(3_000_000).to(torch.float8_e4m3fn), "n": torch.arange(9)}
    other = {name: tensor.clone() for name, tensor in one.items()}
    other["layers.3"][5_000:] *= 1.001
    other["layers.5"][-1] = float("nan")
    other["codes"] = torch.randn(3_000_000).to(torch.float8_e4m3fn)
    other["n"] = other["n"] + 2**60
    for name, tree in (("a.pt", one), ("b.pt", other)):
        torch.save({"model": tree, "epoch": len(name)}, tmp_path / name)
    return tmp_path / "a.pt", tmp_path / "b.pt"


def torchrun(*args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", "ckptool", *map(str, args)]  # fmt: skip
    env = environment({"OMP_NUM_THREADS": "1"})
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_two_ranks_give_the_report_of_one_process(paths, ckptool):
    alone = ckptool("diff", *paths, "--json")
    together = torchrun("diff", *paths, "--json")
    assert (alone.exit_code, together.returncode) == (1, 1), together.stderr
    assert json.loads(together.stdout) == alone.json
    assert len(alone.json["tensors"]) == 4


@pytest.mark.slow
def test_two_ranks_agree_that_equal_files_are_equal(paths):
    done = torchrun("diff", paths[0], paths[0])
    assert (done.returncode, done.stdout.split()[0]) == (0, "equal"), done.stderr
    assert done.stdout.count("tensors:") == 1

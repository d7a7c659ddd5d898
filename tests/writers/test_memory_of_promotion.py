"""Promotion takes the same memory for any size, also where values are cast and rearranged."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from helpers.output import environment
from helpers.tensors import load

pytestmark = pytest.mark.slow

LIMIT = 64  # MiB, the interpreter and numpy included
PARTS, SIDE = 2, 4096

# The peak of a child is at least that of the process that made it: so a small one stands between.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def peak_of(*args: object) -> float:
    """MiB that ``ckptool`` takes at most; it must succeed."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "ckptool", *map(str, args)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    code, peak = done.stdout.split()
    assert code == "0", done.stderr
    return float(peak)


def square(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """64 MiB in float32; every value is its own."""
    return torch.linspace(value, value + 1, SIDE * SIDE).to(dtype).view(SIDE, SIDE)


def casts():
    return square(0, torch.bfloat16), square(0.25)


def channels_last():
    images = square(0).view(256, -1, 16, 16)
    return images.to(memory_format=torch.channels_last), square(0.25).view_as(images)


def casts_into_channels_last():
    images = square(0, torch.float16).view(256, -1, 16, 16)
    return images.to(memory_format=torch.channels_last), square(0.25).view_as(images)


def transposed():
    return square(0), square(0.25).t()


def transposed_slot():
    return square(0).t(), square(0.25)


KINDS = (casts, channels_last, casts_into_channels_last, transposed, transposed_slot)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zipped", [True, False])
def test_peak_is_that_of_a_small_file(kind, zipped, tmp_path):
    path, output = tmp_path / "large.pt", tmp_path / "out.pt"
    slot, averaged = kind()
    model = {f"{i}.weight": slot.clone() for i in range(PARTS)}
    average = {name: averaged + i for i, name in enumerate(model)}
    torch.save({"model": model, "ema": average}, path, _use_new_zipfile_serialization=zipped)
    peak = peak_of("promote-ema", path, "-o", output, "--ema", "ema", "--model", "model")
    found = load(output)["model"]
    for name, tensor in average.items():
        assert torch.equal(found[name], tensor.to(slot.dtype))
    assert peak < LIMIT, f"{peak} MiB"


def test_ties_are_compared_in_little_memory(tmp_path):
    """Under two shapes, each with an average of its own."""
    path, output = tmp_path / "large.pt", tmp_path / "out.pt"
    shared = square(0, torch.bfloat16)
    model = {"embed": shared, "flat": shared.view(-1), "turned": shared.t()}
    average = {"embed": square(0.25), "flat": square(0.25).view(-1), "turned": square(0.25).t()}
    torch.save({"model": model, "ema": average}, path)
    peak = peak_of("promote-ema", path, "-o", output, "--ema", "ema", "--model", "model")
    assert torch.equal(load(output)["model"]["flat"], average["flat"].bfloat16())
    assert peak < LIMIT, f"{peak} MiB"

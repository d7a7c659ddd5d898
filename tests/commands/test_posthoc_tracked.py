"""Post-hoc EMAs against those that were tracked in a genuine run of ema-pytorch's ``PostHocEMA``.

``posthoc/run.safetensors`` has the weights after each step, from which an EMA of any width and the
snapshots at any interval follow by the library's rule. The first test holds the rule against the
files that the library wrote.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from ckptool.plans.posthoc import gamma_of
from helpers.paths import FIXTURES
from helpers.tensors import load
from helpers.thinned import one_in

POSTHOC = FIXTURES / "posthoc"
STORED = (0.05, 0.28)
STEPS = 80

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def run() -> Weights:
    """The weights of the model, with the step as the first axis."""
    return load_file(POSTHOC / "run.safetensors")


def tracked(run: Weights, width: float) -> Weights:
    """The EMA after each step, as ``KarrasEMA.update`` of ema-pytorch tracks it, in float64."""
    found, gamma = {}, gamma_of(width)
    for name, weights in run.items():
        average, steps = weights[0].double(), []
        for step, each in enumerate(weights.double(), 1):
            kept = (1 - 1 / (step + 1)) ** (gamma + 1)  # it counts one step more
            average = average * kept + each * (1 - kept)
            steps.append(average)
        found[name] = torch.stack(steps)
    return found


def write(folder, emas: list[Weights], every: int, ahead: int) -> None:
    """Write snapshots in float32 as ``PostHocEMA.checkpoint`` writes them; they state no width.

    ``ahead`` is added to the steps in their names.
    """
    for track, ema in enumerate(emas):
        for step in range(every, STEPS + 1, every):
            content = {f"ema_model.{name}": each[step - 1].float() for name, each in ema.items()}
            counters = {"initted": torch.tensor(1.0), "step": torch.tensor(float(step))}
            torch.save(content | counters, folder / f"{track}.{step + ahead}.pt")


@pytest.fixture(scope="module")
def snapshots(run, tmp_path_factory):
    """Return the folder of snapshots at an interval, written when it is first asked for."""
    emas = [tracked(run, width) for width in STORED]

    @cache
    def at(every: int, ahead: int):
        folder = tmp_path_factory.mktemp(f"every {every} {ahead}")
        write(folder, emas, every, ahead)
        return folder

    return at


@pytest.fixture
def made(ckptool, tmp_path, snapshots):
    """Make the EMA of a width from snapshots at an interval; its weights, and the residual."""

    def make(width: float, every: int, ahead: int = 0):
        folder, output = snapshots(every, ahead), tmp_path / f"{every} {ahead}.pt"
        done = ckptool(
            "average", folder, "--sigma-rel", width, "--widths", "0.05,0.28", "--force",
            "-o", output, "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        return flat(load(output)), done.json["posthoc"]["residual"]

    return make


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([weights[name].double().ravel() for name in sorted(weights)])


def last(ema: Weights) -> torch.Tensor:
    return flat({name: each[-1] for name, each in ema.items()})


def scatter(run: Weights) -> float:
    """The root mean square distance of the weights during the run from their mean."""
    squares = [((w - w.mean(0)) ** 2).sum() / STEPS for w in run.values()]
    return math.sqrt(sum(squares))


def test_the_rule_is_that_of_the_library(run):
    for track, width in enumerate(STORED):
        ema = tracked(run, width)
        for step in range(10, STEPS + 1, 10):
            found = load(POSTHOC / "series" / f"{track}.{step}.pt")
            for name, each in ema.items():
                torch.testing.assert_close(
                    found[f"ema_model.{name}"].double(), each[step - 1], rtol=2**-10, atol=1e-6
                )
    ema = tracked(run, 0.15)
    for name, tensor in load_file(POSTHOC / "tracked.safetensors").items():
        expected = ema[name][-1]
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", STORED)
def test_a_width_that_the_snapshots_hold(run, made, width):
    found, residual = made(width, 10)
    torch.testing.assert_close(found, last(tracked(run, width)), rtol=0, atol=1e-6)
    assert residual < 1e-6


# The library's decay counts one step more than its file names do. So does the profile; where the
# snapshots are dense that one step shows, as it does in the EMA that the library makes of them.
WIDTHS = (0.07, 0.1, 0.15, 0.2)
NAMES = [(20, 0), (10, 0), (5, 0), (20, 1), (10, 1), (5, 1), (2, 1), (1, 1)]


@pytest.mark.parametrize(("names", "width"), one_in(3, product(NAMES, WIDTHS)), ids=str)
def test_a_width_between_them_is_as_near_as_the_residual_says(run, made, names, width):
    """The bound is derived in ``tests/plans/test_posthoc.py``."""
    found, residual = made(width, *names)
    gamma = gamma_of(width)
    bound = residual * (gamma + 1) / math.sqrt(2 * gamma + 1) * scatter(run)
    off = (found - last(tracked(run, width))).norm().item()
    assert 0 < off < bound


def test_more_snapshots_come_nearer_until_one_step_shows(run, made):
    wanted = last(tracked(run, 0.15))

    def off(every: int, ahead: int) -> float:
        found, _ = made(0.15, every, ahead)
        return (found - wanted).norm().item()

    assert off(4, 1) < off(10, 1) / 2 < off(20, 1) / 4
    assert off(2, 0) > off(2, 1) * 2


@pytest.mark.parametrize("width", [0.07, 0.1, 0.15])
def test_snapshots_of_each_step_make_the_tracked_ema(run, made, width):
    found, _ = made(width, 1, 1)
    torch.testing.assert_close(found, last(tracked(run, width)), rtol=0, atol=1e-6)

"""Weights of snapshots for a post-hoc EMA, against least squares on a grid of times."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.errors import UsageError
from ckptool.plans.posthoc import WIDEST, Series, gamma_of
from helpers.thinned import examples


@given(st.floats(0.001, WIDEST))
@examples(60)
def test_gamma_has_the_width(width):
    """The standard deviation of t ** gamma over the run, Equation 123 of the paper."""
    gamma = gamma_of(width)
    found = math.sqrt((gamma + 1) / (gamma + 2) ** 2 / (gamma + 3))
    assert found == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0, -0.1, 0.3, math.nan])
def test_no_ema_is_as_wide(width):
    with pytest.raises(UsageError, match="a relative width is between 0 and"):
        gamma_of(width)


def profile(t: np.ndarray, time: float, width: float) -> np.ndarray:
    gamma = gamma_of(width)
    return np.where(t <= time, (gamma + 1) / time * (np.minimum(t, time) / time) ** gamma, 0)


SNAPSHOTS = [(time, width) for time in range(10, 90, 10) for width in (0.05, 0.1)]


@pytest.mark.parametrize("width", [0.04, 0.07, 0.15, 0.2])
def test_weights_are_those_of_least_squares_on_a_grid(width):
    grid = (np.arange(160_000) + 0.5) * (80 / 160_000)
    columns = np.stack([profile(grid, *each) for each in SNAPSHOTS], 1)
    wanted = profile(grid, 80, width)
    found, *_ = np.linalg.lstsq(columns, wanted, rcond=None)
    found = found / found.sum()
    left = np.linalg.norm(columns @ found - wanted) / np.linalg.norm(wanted)
    made = Series(*zip(*SNAPSHOTS, strict=True)).synthesis(width)
    assert made.weights == pytest.approx(found, abs=2e-4)
    assert made.residual == pytest.approx(left, rel=1e-3)
    assert made.noise == pytest.approx(np.linalg.norm(found), rel=1e-3)
    assert math.fsum(made.weights) == pytest.approx(1)


def test_a_width_that_was_stored_is_its_snapshot():
    made = Series(*zip(*SNAPSHOTS, strict=True)).synthesis(0.1)
    assert made.weights == pytest.approx([0.0] * 15 + [1.0], abs=1e-9)
    assert made.residual == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("count", "low", "high"), [(2, 0.05, 0.12), (8, 0.03, 0.2), (64, 0.01, 0.28)]
)
def test_more_snapshots_reach_further(count, low, high):
    times = [time for time in range(1, count + 1) for _ in (0, 1)]
    series = Series(times, [0.05, 0.1] * count)
    narrow, wide = series.within_reach()
    assert narrow <= low * 1.2
    assert wide >= high * 0.9
    assert series.synthesis(narrow / 2).residual > 0.1


def test_snapshots_twice_determine_nothing():
    with pytest.raises(UsageError, match="of one width and one time"):
        Series([5, 5], [0.1, 0.1]).synthesis(0.2)


# ------------------------------------------------------------------------ against a tracked EMA

STEPS, STORED = 4096, (0.05, 0.1)


@pytest.fixture(scope="module")
def run() -> np.ndarray:
    """The weights after each step: a walk that calms down, and noise."""
    generator = np.random.default_rng(0)
    calming = np.exp(-np.arange(STEPS) / 1000)[:, None] / 30
    walk = (generator.normal(size=(STEPS, 20)) * calming).cumsum(0)
    return 1 + walk + 0.3 * generator.normal(size=(STEPS, 20))


def tracked(run: np.ndarray, width: float) -> np.ndarray:
    """The EMA after each step, as EDM2's ``PowerFunctionEMA.update`` tracks it."""
    average, found, gamma = run[0], [], gamma_of(width)
    for step, weights in enumerate(run, 1):
        kept = (1 - 1 / step) ** (gamma + 1)
        average = average * kept + weights * (1 - kept)
        found.append(average)
    return np.array(found)


def bound(run: np.ndarray, width: float, residual: float) -> float:
    """The largest distance from a tracked EMA that profiles this far apart allow.

    An EMA is the integral of its profile times the weights, exactly, if the weights of a step count
    until the next one. Two profiles have the same integral, so the weights may be taken from their
    mean over the run; then it is the inequality of Cauchy and Schwarz.
    """
    gamma = gamma_of(width)
    scatter = math.sqrt(((run - run.mean(0)) ** 2).sum(1).mean())
    return residual * (gamma + 1) / math.sqrt(2 * gamma + 1) * scatter


@pytest.fixture(scope="module")
def last(run):
    """Return the tracked EMA of a width after the last step, computed once."""
    return cache(lambda width: tracked(run, width)[-1])


@pytest.fixture(scope="module")
def stored(run) -> dict[float, np.ndarray]:
    return {width: tracked(run, width) for width in STORED}


@cache
def synthesis(width: float, count: int):
    """The synthesis from so many snapshots of each stored width, and their steps and widths."""
    steps = [STEPS * nth // count for nth in range(1, count + 1)]
    rows = [(step, each) for step in steps for each in STORED]
    return Series(*zip(*rows, strict=True)).synthesis(width), rows


def synthesized(stored, width: float, count: int, dtype: str = "f8"):
    """The EMA that so many snapshots of each stored width make, and their synthesis."""
    made, rows = synthesis(width, count)
    snapshots = np.array([stored[each][step - 1] for step, each in rows])
    return np.array(made.weights) @ snapshots.astype(dtype).astype("f8"), made


@pytest.mark.parametrize("count", [8, 32, 128, 512])
@pytest.mark.parametrize("width", [0.04, 0.07, 0.15, 0.2])
def test_it_is_as_near_to_the_tracked_ema_as_the_residual_says(run, last, stored, width, count):
    found, made = synthesized(stored, width, count)
    off = np.linalg.norm(found - last(width))
    assert 0 < off < bound(run, width, made.residual)


@pytest.mark.parametrize("width", [0.04, 0.07, 0.15, 0.2])
def test_many_snapshots_reproduce_the_tracked_ema_but_for_their_rounding(last, stored, width):
    """Four times as many are about sixteen times nearer; float16 keeps what it has lost."""
    wanted = last(width)

    def off(count: int, dtype: str) -> float:
        found, _ = synthesized(stored, width, count, dtype)
        return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)

    assert off(128, "f4") < off(32, "f4") / 8
    assert off(512, "f4") < 1e-6
    assert 2e-5 < off(512, "f2") < 2**-11


def test_a_stored_width_is_the_tracked_ema(stored):
    found, made = synthesized(stored, STORED[0], 32)
    assert made.residual < 1e-6
    assert found == pytest.approx(stored[STORED[0]][-1], rel=1e-9)

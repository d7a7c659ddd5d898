"""Weights of checkpoints, against the code and the papers that they are from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ckptool.errors import UsageError
from ckptool.plans.weighing import (
    SCHEDULES,
    equal_shares,
    given_shares,
    schedule_shares,
    shares_between,
)
from helpers.making import weights
from helpers.thinned import examples


def of_megatron(schedule, count: int) -> list[float]:
    """As ``schedule_to_merge_coefficients`` of tools/checkpoint/weighted_merge.py has them."""
    left = [schedule(index / count) for index in range(count)]
    found = [0.0] * count
    found[-1] = left[-1]
    for index in range(1, count - 1):
        found[index] = left[index] - left[index + 1]
    found[0] = 1 - sum(found)
    return found


@pytest.mark.parametrize("count", [2, 3, 5, 20])
@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("linear", lambda x: 1 - x),
        ("minus-sqrt", lambda x: 1 - math.sqrt(x)),
        ("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * x))),
    ],
)
def test_weights_are_those_of_weighted_merge(name, schedule, count):
    assert schedule_shares(name, range(count)).weights == pytest.approx(
        of_megatron(schedule, count), abs=1e-15
    )


def test_a_linear_decay_is_the_plain_mean():
    assert schedule_shares("linear", range(7)).weights == pytest.approx(equal_shares(7).weights)


def test_inverse_square_root():
    assert schedule_shares("inverse-sqrt", range(4)).weights == pytest.approx([
        1 - 2**-0.5, 2**-0.5 - 3**-0.5, 3**-0.5 - 0.5, 0.5,
    ])  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
@given(count=st.integers(1, 60))
@examples(20)
def test_weights_of_a_schedule_are_an_average(name, count):
    found = schedule_shares(name, range(count)).weights
    assert len(found) == count
    assert min(found) > 0
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_checkpoints_of_a_constant_rate_come_to_those_of_a_decayed_one(name):
    """The theorem of Warmup-Stable-Merge, on updates that do not depend on the weights."""
    count, updates = 6, torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator())
    constant = updates.cumsum(0)  # a checkpoint after each interval
    shares = schedule_shares(name, range(count)).weights
    merged = sum(share * weights for share, weights in zip(shares, constant, strict=True))
    decayed = sum(SCHEDULES[name](at, count) * update for at, update in enumerate(updates))
    torch.testing.assert_close(merged, decayed)


@given(name=st.sampled_from(sorted(SCHEDULES)), count=st.integers(2, 9), gap=st.integers(1, 10**6))
@examples(40)
def test_equal_steps_are_counted_as_checkpoints(name, count, gap):
    steps = [7 + gap * at for at in range(count)]
    assert schedule_shares(name, steps) == schedule_shares(name, range(count))


@pytest.mark.parametrize("name", SCHEDULES)
def test_uneven_steps_keep_what_the_decay_leaves_there(name):
    steps = [100, 150, 400, 1000]
    shares = schedule_shares(name, steps).weights
    for at, step in enumerate(steps):
        place = (step - 100) / 900 * 3  # in mean intervals of which the decay takes four
        assert sum(shares[at:]) == pytest.approx(SCHEDULES[name](place, 4))


def test_weights_that_are_typed():
    with pytest.raises(UsageError, match="come to nan"):
        given_shares("nan,1", 2)


@pytest.mark.parametrize(("first", "last"), [(5, 5), (6, 5), (-1, 5)])
def test_nothing_lies_between(first, last):
    with pytest.raises(UsageError, match="the second must be later"):
        shares_between(first, last)


# ------------------------------------------------------------------------------------------ icefall


def running_mean(path, steps: int, period: int, *, seed: int = 3) -> list[torch.Tensor]:
    """Save a run as icefall does, and return the weights of each averaged step."""
    generator = torch.Generator().manual_seed(seed)
    seen: list[torch.Tensor] = []
    average = torch.zeros(4, 3, dtype=torch.float64)
    for step in range(1, steps + 1):
        live = torch.randn(4, 3, generator=generator)
        if step % period == 0:  # update_averaged_model
            share = period / step
            average = live.double() * share + average * (1 - share)
            seen.append(live)
    content = {
        "model": weights(w=live), "model_avg": weights(w=average.float()),
        "average_period": period, "batch_idx_train": steps,
    }  # fmt: skip
    torch.save(content, path)
    return seen


def test_the_mean_of_the_steps_between_two_running_means(tmp_path, ckptool):
    running_mean(tmp_path / "a.pt", 121, 10)
    seen = running_mean(tmp_path / "b.pt", 305, 10)
    out = tmp_path / "out.safetensors"
    done = ckptool(
        "average", tmp_path / "b.pt", tmp_path / "a.pt", "--between", "-o", out, "--json"
    )
    assert done.exit_code == 0, done.stderr
    wanted = torch.stack(seen[12:]).double().mean(0).float()
    torch.testing.assert_close(load_file(out)["w"], wanted, rtol=0, atol=2e-6)
    found = [source["weight"] for source in done.json["sources"]]
    assert found == pytest.approx([-120 / 180, 300 / 180])
    assert ckptool("verify", out, "--require", "ema").exit_code == 0


def test_other_checkpoints_have_no_running_means(tmp_path, ckptool):
    def refusal(*args) -> str:
        done = ckptool("average", *args, "--between", "-o", tmp_path / "out.pt")
        assert done.exit_code == 2
        return done.stderr

    for name in ("a", "b"):
        torch.save(
            {"model": weights(), "ema": weights(), "step": ord(name)}, tmp_path / f"{name}.pt"
        )
    both = tmp_path / "a.pt", tmp_path / "b.pt"
    assert "states no batch_idx_train and average_period" in refusal(*both, "--only", "model")
    huge = {"model_avg": weights(), "average_period": 1, "batch_idx_train": 10**400}
    torch.save({"model": weights(), **huge}, tmp_path / "d.pt")
    message = refusal(tmp_path / "d.pt", tmp_path / "d.pt", "--only", "ema")
    assert "states no batch_idx_train" in message
    running_mean(tmp_path / "c.pt", 100, 10)
    assert "takes two checkpoints, and there are 3" in refusal(
        *both, tmp_path / "c.pt", "--only", "ema"
    )
    message = refusal(tmp_path / "c.pt", tmp_path / "c.pt")
    assert "the running means are of the steps 100 and 100: the second must be later" in message

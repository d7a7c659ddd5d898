"""The weights of checkpoints in a mean: typed, by a schedule, as an EMA, or of two running means.

Every function returns one weight for each checkpoint, the newest last; they come to 1. What is
averaged with them is the matter of ``averaging.py``.

A schedule gives the weights by which checkpoints at a constant learning rate come to the weights
that a decay of the learning rate would have led to (Warmup-Stable-Merge, arXiv:2507.17634): the
updates between two checkpoints keep the share d of their size, which the decay leaves them. In the
mean they are in every later checkpoint, so each checkpoint has the weight by which d falls there.
Megatron-LM's ``tools/checkpoint/weighted_merge.py`` computes ``linear`` and ``minus-sqrt`` so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import cos, isfinite, pi, sqrt

from ckptool.errors import UsageError


def equal_weights(count: int) -> tuple[float, ...]:
    """Return the weights of a plain mean."""
    return (1 / count,) * count


def given_weights(text: str, count: int) -> tuple[float, ...]:
    """Return the weights that were typed, ``1,1,2``, with a sum of 1.

    Raises:
        UsageError: they are no numbers, too many or too few, or come to nothing.
    """
    try:
        weights = [float(each) for each in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--weights {text!r} are no numbers", hint="like 1,1,2") from error
    if len(weights) != count:
        raise UsageError(
            f"--weights has {len(weights)} numbers for {count} checkpoints",
            hint="give one number for each checkpoint, in their order",
        )
    total = sum(weights)
    if not all(map(isfinite, (*weights, total))) or total == 0:
        raise UsageError(f"--weights {text!r} come to {total}", hint="their sum must not be 0")
    return tuple(weight / total for weight in weights)


def ema_weights(steps: Sequence[float], decay: float) -> tuple[float, ...]:
    """Return the weights of an EMA that begins at the first state dict and then meets the others.

    ``decay`` is that of one step, as in training: over a gap of n steps the EMA keeps decay ** n.

    Raises:
        UsageError: the decay is not between 0 and 1, or two state dicts are of one step.
    """
    if not 0 < decay < 1:
        raise UsageError(f"--ema-decay {decay} is not between 0 and 1")
    weights = [1.0]
    for before, after in pairwise(steps):
        if after <= before:
            raise UsageError(f"two of the checkpoints are of step {after:g}")
        kept = decay ** (after - before)
        weights = [*(weight * kept for weight in weights), 1 - kept]
    return tuple(weights)


# The share of the learning rate that a decay leaves after ``at`` of ``count`` intervals: 1 at the
# beginning. Behind the last checkpoint nothing is left.
SCHEDULES: Mapping[str, Callable[[int, int], float]] = {
    "linear": lambda at, count: 1 - at / count,
    "cosine": lambda at, count: (1 + cos(pi * at / count)) / 2,
    "inverse-sqrt": lambda at, count: 1 / sqrt(1 + at),  # noqa: ARG005 - of any length
    "minus-sqrt": lambda at, count: 1 - sqrt(at / count),
}


def schedule_weights(name: str, count: int) -> tuple[float, ...]:
    """Return the weights by which checkpoints at equal intervals stand for a decay."""
    left = [*(SCHEDULES[name](at, count) for at in range(count)), 0.0]
    return tuple(before - after for before, after in pairwise(left))


def weights_between(first: float, last: float) -> tuple[float, float]:
    """Return the weights of two running means over all steps so far, for the mean in between.

    That is the mean of the steps after ``first`` up to ``last``, as icefall computes it in
    ``average_checkpoints_with_averaged_model``
    (https://github.com/k2-fsa/icefall/blob/master/icefall/checkpoint.py).

    Raises:
        UsageError: the second is not later.
    """
    if not 0 <= first < last:
        raise UsageError(
            f"between the steps {first:g} and {last:g} of the running means lies nothing to average"
        )
    return -first / (last - first), last / (last - first)

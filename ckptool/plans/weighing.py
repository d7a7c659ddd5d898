"""The weights of checkpoints in a mean: typed, by a schedule, as an EMA, or of two running means.

Every function returns the shares of the checkpoints, the newest last. What is averaged with them is
the matter of ``averaging.py``.

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
from ckptool.records import NamedTuple

LARGEST = float(1 << 20)  # of the parts of shares: products with weights stay far from infinity


class Shares(NamedTuple):
    """The shares of checkpoints in a mean: parts of a whole.

    A mean is divided by the whole at the end. So the sum of a plain mean is exact, where products
    with 1 / 3 are not: a value that lies between two floats is rounded as the exact mean is.
    """

    parts: tuple[float, ...]
    whole: float = 1.0

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights, which come to 1."""
        return tuple(part / self.whole for part in self.parts)


def equal_shares(count: int) -> Shares:
    """Return the shares of a plain mean."""
    return Shares((1.0,) * count, float(count))


def given_shares(text: str, count: int) -> Shares:
    """Return the weights that were typed, ``1,1,2``, as parts of their sum.

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
    shares = Shares(tuple(weights), total)
    is_plain = max(map(abs, weights)) <= LARGEST and abs(total) >= 1 / LARGEST
    return shares if is_plain else Shares(shares.weights)


def ema_shares(steps: Sequence[float], decay: float) -> Shares:
    """Return the shares of an EMA that begins at the first state dict and then meets the others.

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
    return Shares(tuple(weights))


# The share of the learning rate that a decay leaves after ``at`` of ``count`` intervals: 1 at the
# beginning. Behind the last checkpoint nothing is left.
SCHEDULES: Mapping[str, Callable[[float, int], float]] = {
    "linear": lambda at, count: 1 - at / count,
    "cosine": lambda at, count: (1 + cos(pi * at / count)) / 2,
    "inverse-sqrt": lambda at, count: 1 / sqrt(1 + at),  # noqa: ARG005 - of any length
    "minus-sqrt": lambda at, count: 1 - sqrt(at / count),
}


def schedule_shares(name: str, steps: Sequence[float]) -> Shares:
    """Return the shares by which checkpoints of these steps stand for a decay.

    The decay begins at the first checkpoint and ends a mean interval after the last, as it does in
    ``weighted_merge.py``, which counts checkpoints: at equal intervals the shares are the same.
    """
    count, length = len(steps), steps[-1] - steps[0]
    places = [(step - steps[0]) * (count - 1) / (length or 1) for step in steps]
    left = [*(SCHEDULES[name](at, count) for at in places), 0.0]
    return Shares(tuple(before - after for before, after in pairwise(left)))


def shares_between(first: float, last: float) -> Shares:
    """Return the shares of two running means over all steps so far, for the mean in between.

    That is the mean of the steps after ``first`` up to ``last``, as icefall computes it in
    ``average_checkpoints_with_averaged_model``
    (https://github.com/k2-fsa/icefall/blob/master/icefall/checkpoint.py).

    Raises:
        UsageError: the second is not later.
    """
    if not 0 <= first < last:
        raise UsageError(
            f"the running means are of the steps {first:g} and {last:g}: the second must be later"
        )
    return Shares((-first, last), last - first)

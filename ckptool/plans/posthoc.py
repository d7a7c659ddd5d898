"""Post-hoc EMA: the weights by which snapshots of power-function EMAs make one of another width.

An EMA is a mean of the weights of a run over time. Its profile says how much each time counts: for
a power-function EMA at the time T it rises as t ** gamma up to T. The mean of snapshots has the
weighted sum of their profiles, and the weights are those that bring this sum nearest to the wanted
profile in the least-squares sense: A x = b, with the inner products of all pairs of profiles in A,
and of each with the wanted profile in b (Karras et al., arXiv:2312.02696, Appendix C and
Algorithm 3). They are scaled to a sum of 1, as EDM2's code does; ema-pytorch's code does not.

The distance that is left is the residual: 0 where a snapshot has the wanted width itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckptool.errors import UsageError
from ckptool.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WIDEST = 0.2886  # sigma_rel of gamma = 0, the plain mean of the run: 1 / sqrt(12), rounded down
MAX_SNAPSHOTS = 2048  # the inner products of all pairs take 32 MiB
TOLERANCE = 0.1  # residual up to which a width counts as within reach
STEPS = 60  # widths that are tried to find out what is within reach


class Synthesis(NamedTuple):
    """The weights of snapshots, and how well they make the wanted profile."""

    weights: tuple[float, ...]
    residual: float  # relative L2 distance from the wanted profile
    noise: float  # factor by which rounding errors of the snapshots grow


def gamma_of(width: float) -> float:
    """Return the exponent of the profile whose standard deviation is ``width`` of the run.

    Raises:
        UsageError: no power function is as wide, or as narrow.
    """
    import numpy as np

    if not 0 < width <= WIDEST:
        raise UsageError(
            f"a relative width is between 0 and {WIDEST}, the plain mean of a run, not {width:g}"
        )
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Series:
    """The profiles of snapshots, with the inner products of all pairs."""

    def __init__(self, times: Sequence[float], widths: Sequence[float]) -> None:
        import numpy as np

        known = {width: gamma_of(width) for width in set(widths)}
        self._times = np.array(times, np.float64)
        self._gammas = np.array([known[width] for width in widths])
        column = self._times[:, None], self._gammas[:, None]
        self._pairs = _product(*column, self._times[None], self._gammas[None])

    def synthesis(self, width: float) -> Synthesis:
        """Return the weights that make the EMA of ``width`` at the time of the newest snapshot.

        Raises:
            UsageError: no EMA is of this width, or the snapshots do not determine it.
        """
        (found,) = self._solved([width])
        return found

    def within_reach(self) -> tuple[float, float] | None:
        """Return the narrowest and the widest EMA of a residual up to ``TOLERANCE``."""
        tried = [WIDEST * (step / STEPS) for step in range(1, STEPS + 1)]
        found = zip(tried, self._solved(tried), strict=True)
        good = [width for width, made in found if made.residual <= TOLERANCE]
        return (good[0], good[-1]) if good else None

    def _solved(self, widths: Sequence[float]) -> list[Synthesis]:
        import numpy as np

        time, gammas = self._times.max(), np.array([gamma_of(width) for width in widths])
        wanted = _product(self._times[:, None], self._gammas[:, None], time, gammas[None])
        try:
            found = np.linalg.solve(self._pairs, wanted)
        except np.linalg.LinAlgError as error:
            raise UsageError("two of the snapshots are of one width and one time") from error
        found = found / found.sum(0)
        sizes = _product(time, gammas, time, gammas)
        distances = sizes - 2 * (found * wanted).sum(0) + (found * (self._pairs @ found)).sum(0)
        residuals = np.sqrt(np.maximum(distances, 0) / sizes)
        noise = np.sqrt((found**2).sum(0))
        return [
            Synthesis(tuple(map(float, weights)), float(residual), float(factor))
            for weights, residual, factor in zip(found.T, residuals, noise, strict=True)
        ]


def _product(time: Array, gamma: Array, other_time: Array, other_gamma: Array) -> Array:
    """Return the inner products of the profiles of two EMAs: the integral over their product."""
    import numpy as np

    exponent = np.where(time < other_time, other_gamma, -gamma)
    ratio = (time / other_time) ** exponent
    scale = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    product: Array = scale * ratio / np.maximum(time, other_time)
    return product

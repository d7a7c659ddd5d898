"""How far apart two numbers may be and still count as equal.

A tolerance is for the addresses that fit its glob; **the most specific glob wins**, which is the
one with the most characters that are no wildcards (``*``, ``?``, ``[…]``); of two equally specific
ones the later. ``--atol`` and ``--rtol`` are the tolerance of ``*``.

Two numbers are close when ``|a - b| <= atol + rtol * max(|a|, |b|)``, or when they are at most
``ulp`` floating-point numbers apart. The larger of the two stands where ``torch.allclose`` has the
second, so that the verdict does not depend on which file is named first. Integers, flags and texts
are never close, only equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ckptool.errors import UsageError

WILDCARDS = re.compile(r"\*|\?|\[[^\]]*\]")


class Tolerance(NamedTuple):
    """How far numbers at the addresses that fit may be apart."""

    match: str = "*"
    atol: float = 0.0
    rtol: float = 0.0
    ulp: int = 0

    @property
    def specificity(self) -> int:
        """Characters of the glob that are no wildcards."""
        return len(WILDCARDS.sub("", self.match))

    def allows(self, a: complex, b: complex) -> bool:
        """Whether two plain numbers that differ are close."""
        if not (self.atol or self.rtol):
            return False
        try:
            distance, size = abs(a - b), max(abs(a), abs(b))
        except OverflowError:  # an integer beyond all floating-point numbers
            return False
        return math.isfinite(distance) and distance <= self.atol + self.rtol * size


class Tolerances(NamedTuple):
    """All tolerances of a comparison, the most specific first."""

    rows: tuple[Tolerance, ...]

    def at(self, address: str) -> Tolerance:
        """The one that decides at an address."""
        return next(row for row in self.rows if fnmatchcase(address, row.match))


def choose_tolerances(
    general: Tolerance, special: Sequence[tuple[str, float, float]] = ()
) -> Tolerances:
    """The table of a general tolerance and those for single groups, as (glob, atol, rtol)."""
    given = [Tolerance(glob, atol, rtol, general.ulp) for glob, atol, rtol in special]
    later_first = [*given[::-1], general]
    return Tolerances((*sorted(later_first, key=lambda row: -row.specificity), general))


def parse_tolerance(text: str) -> tuple[str, float, float]:
    """``GLOB=ATOL[,RTOL]``; without RTOL it is 0.

    Raises:
        UsageError: of another form.

    Example:
        >>> parse_tolerance("*.delta_*=1e-8")
        ('*.delta_*', 1e-08, 0.0)
    """
    glob, _, numbers = text.rpartition("=")
    if not glob:
        raise UsageError(f"a tolerance is GLOB=ATOL[,RTOL], not {text!r}")
    return (glob, *_numbers(numbers.split(","), text))


def tolerance_row(glob: str, value: Any) -> tuple[str, float, float]:
    """A tolerance as configurations and Python give it: a number, a pair, or ``"ATOL,RTOL"``.

    Raises:
        UsageError: of another form.
    """
    if isinstance(value, str):
        return parse_tolerance(f"{glob}={value}")
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    return (glob, *_numbers(parts, f"{glob} = {value!r}"))


def _numbers(parts: Sequence[Any], text: str) -> tuple[float, float]:
    try:
        numbers = [float(part) for part in parts if not isinstance(part, bool)]
    except (TypeError, ValueError):
        numbers = []
    if not 1 <= len(numbers) <= 2 or len(numbers) != len(parts) or not all(n >= 0 for n in numbers):
        raise UsageError(f"a tolerance is one or two numbers that are not negative: {text!r}")
    return numbers[0], numbers[1] if len(numbers) == 2 else 0.0

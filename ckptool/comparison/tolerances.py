"""Tolerances: distances within which two numbers count as equal.

A tolerance is for the key paths that match its glob. **The most specific glob wins**: the one with
the most characters that are no wildcards (``*``, ``?``, ``[…]``). Of two equally specific globs the
later wins. ``--atol`` and ``--rtol`` are the tolerance of ``*``.

Two numbers are close when ``|a - b| <= atol + rtol * max(|a|, |b|)``, or when they are at most
``ulp`` floating-point numbers apart. ``rtol`` is relative to the larger magnitude, not
to the second as in ``torch.allclose``, so that the verdict does not depend on which file is named
first. Integers, bools and texts are never close, only equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ckptool.errors import UsageError
from ckptool.records import NamedTuple
from ckptool.regex import regex

WILDCARDS = regex(r"\*|\?|\[[^\]]*\]")


class Tolerance(NamedTuple):
    """Tolerance for the numbers at the key paths that match a glob."""

    match: str = "*"
    atol: float = 0.0
    rtol: float = 0.0
    ulp: int = 0

    @property
    def specificity(self) -> int:
        """Number of characters of the glob that are no wildcards."""
        return len(WILDCARDS.sub("", self.match))

    def allows(self, a: complex, b: complex) -> bool:
        """Return whether two plain numbers that differ are close."""
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
        """Return the tolerance that applies to a key path."""
        return next(row for row in self.rows if row.match == "*" or fnmatchcase(address, row.match))


def merge_tolerances(
    settings: Mapping[str, Any],
    *,
    atol: float | None = None,
    rtol: float | None = None,
    ulp: int | None = None,
    special: Sequence[str] = (),
) -> Tolerances:
    """Merge the tolerances of a configuration with those of the command line, which wins.

    A typed number replaces the configured one, and ``special`` the configured row of the same glob.

    Raises:
        UsageError: a tolerance is negative, or has another form.
    """
    atol = settings.get("atol", 0.0) if atol is None else atol
    rtol = settings.get("rtol", 0.0) if rtol is None else rtol
    ulp = settings.get("ulp", 0) if ulp is None else ulp
    if not (atol >= 0 and rtol >= 0 and ulp >= 0):
        raise UsageError("a tolerance must be 0 or more")
    rows = [tolerance_row(glob, value) for glob, value in settings.get("tolerance", {}).items()]
    rows += map(parse_tolerance, special)
    return choose_tolerances(Tolerance("*", atol, rtol, ulp), rows)


def choose_tolerances(
    general: Tolerance, special: Sequence[tuple[str, float, float]] = ()
) -> Tolerances:
    """Return the table of a general tolerance and of special ones, given as (glob, atol, rtol)."""
    given = [Tolerance(glob, atol, rtol, general.ulp) for glob, atol, rtol in special]
    later_first = [*given[::-1], general]
    return Tolerances((*sorted(later_first, key=lambda row: -row.specificity), general))


def parse_tolerance(text: str) -> tuple[str, float, float]:
    """Parse ``GLOB=ATOL[,RTOL]``; without RTOL it is 0.

    Raises:
        UsageError: the text has another form.

    Example:
        >>> parse_tolerance("*.delta_*=1e-8")
        ('*.delta_*', 1e-08, 0.0)
    """
    glob, _, numbers = text.rpartition("=")
    if not glob:
        raise UsageError(f"a tolerance is GLOB=ATOL[,RTOL], not {text!r}")
    return (glob, *_numbers(numbers.split(","), text))


def tolerance_row(glob: str, value: Any) -> tuple[str, float, float]:
    """Parse a tolerance of a configuration or of Python: a number, a pair, or ``"ATOL,RTOL"``.

    Raises:
        UsageError: the value has another form.
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

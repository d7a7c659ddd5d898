"""Every check, in the order in which they are asked: the cheap ones of a family first."""

from __future__ import annotations

from ckptool.checks import averages, container, values
from ckptool.checks.base import Check

CHECKS: tuple[Check, ...] = (
    *container.CHECKS,
    *values.CHECKS,
    *averages.CHECKS,
    *container.LAST_CHECKS,
)

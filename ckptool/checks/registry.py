"""The list of all checks in the order of their run, the cheap ones of a family first."""

from __future__ import annotations

from ckptool.checks import (
    averages,
    container,
    generators,
    loading,
    optimizers,
    provenance,
    resume,
    safety,
    values,
)
from ckptool.checks.base import Check

CHECKS: tuple[Check, ...] = (
    *container.CHECKS,
    *safety.CHECKS,
    *values.CHECKS,
    *averages.CHECKS,
    *optimizers.CHECKS,
    *generators.CHECKS,
    *resume.CHECKS,
    *loading.CHECKS,
    *provenance.CHECKS,
    *container.LAST_CHECKS,
)

"""The list of all checks in the order of their run, the cheap ones of a family first."""

from __future__ import annotations

from ckptool.checks import (
    averages,
    container,
    generators,
    groups,
    loading,
    optimizers,
    provenance,
    resume,
    safety,
    saves,
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
    *saves.CHECKS,
    *groups.CHECKS,
    *loading.CHECKS,
    *provenance.CHECKS,
    *container.LAST_CHECKS,
)

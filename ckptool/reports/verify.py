"""Reports of ``ckptool verify`` and ``rule``; see ``base.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ckptool.reports.base import MAY_BE_ABSENT, Configured, Finding, Severity


class State(StrEnum):
    """The outcome of a rule; with the third state, a check that was not made is no success."""

    FAILED = "failed"
    NOT_CHECKED = "not-checked"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one rule for one file."""

    rule: str  # CK404
    title: str
    state: State
    reason: str = ""  # why it was not checked
    severity: Severity = Severity.ERROR  # of its findings
    name: str = ""  # ema-absent


# Severities for which a file fails: without ``--strict``, and with it.
COUNTING: tuple[frozenset[Severity], ...] = (
    frozenset({Severity.ERROR}),
    frozenset({Severity.ERROR, Severity.WARNING}),
)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The answer of ``ckptool verify`` for one file."""

    path: str
    ok: bool  # no finding has a severity for which the file fails
    format: str | None  # None: it could not be opened
    size_bytes: int
    findings: tuple[Finding, ...]
    checks: tuple[CheckResult, ...]  # every rule that was selected, in the order of the table
    required: tuple[str, ...] = ()  # --require, as given
    strict: bool = False  # the file fails for warnings, too
    # The reason why the file could not be read; None: it was read.
    error: Mapping[str, Any] | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Key path of the part that was checked; all other key paths are relative to it.
    address: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Configuration files beside the checkpoint, which may not loosen checks.
    config: Configured = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, slots=True)
class ChoiceReport:
    """The checkpoint of a run that ``verify --latest-valid`` or ``--best`` chose."""

    path: str | None  # None: no checkpoint passed
    why: str
    reports: tuple[VerifyReport, ...]  # of the checkpoints that were checked, in that order
    # Configuration files beside the checkpoint, which may not loosen checks.
    config: Configured = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, slots=True)
class RulesReport:
    """The table of rules, or a part of it."""

    rules: tuple[Any, ...]  # rows of ``rules.py``

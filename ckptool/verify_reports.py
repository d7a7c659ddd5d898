"""What ``verify`` and ``rule`` answer; see ``reports.py``."""

from __future__ import annotations

from typing import Any, NamedTuple

from ckptool.reports import Finding


class CheckResult(NamedTuple):
    """What one rule said of one file: a third state keeps silence from looking like success."""

    rule: str  # CK404
    title: str
    state: str  # passed | failed | not-checked
    reason: str = ""  # why it was not checked
    severity: str = "error"  # of its findings
    name: str = ""  # ema-absent


class VerifyReport(NamedTuple):
    """What ``ckptool verify`` says of one file."""

    path: str
    ok: bool  # nothing that counts failed
    format: str | None  # None: it could not be opened
    size_bytes: int
    findings: tuple[Finding, ...]
    checks: tuple[CheckResult, ...]  # every rule that was selected, in the order of the table
    required: tuple[str, ...] = ()  # --require, as asked
    strict: bool = False  # warnings count too


class ChoiceReport(NamedTuple):
    """Which checkpoint of a run was chosen: ``verify --latest-valid`` and ``--best``."""

    path: str | None  # None: none passed
    why: str
    reports: tuple[VerifyReport, ...]  # of those that were looked at, in that order


class RulesReport(NamedTuple):
    """The table of rules, or a part of it."""

    rules: tuple[Any, ...]  # rows of ``rules.py``

"""What every format says of a verification in the same words: three states, counts, where and what.

Passed, failed and not checked are three things: a check that was not made is never shown as one
that passed, nor left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ckptool.render.text import plural, printable
from ckptool.reports import Finding
from ckptool.verify_reports import CheckResult, VerifyReport

LIMIT = 4096  # characters; programs look files up by what they are told

PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not-checked"

# The words for the states, in the order in which they are of interest.
STATES: Mapping[str, str] = {FAILED: "failed", NOT_CHECKED: "not checked", PASSED: "passed"}
NOUNS: Mapping[str, str] = {"error": "error", "warning": "warning", "info": "note"}


def verdict(report: VerifyReport) -> str:
    """The state of a whole file."""
    return PASSED if report.ok else FAILED


def named(check: CheckResult) -> str:
    """``CK401 ema-absent``: the title says what is wrong, which a check that passed is not."""
    return f"{check.rule} {check.name}"


def in_state(report: VerifyReport, state: str) -> list[CheckResult]:
    """The checks in one of the states, in the order of the table."""
    return [check for check in report.checks if check.state == state]


def counts(report: VerifyReport) -> str:
    """``1 error, 2 warnings; 64 checks: 3 failed, 21 not checked, 40 passed``."""
    severities = [finding.severity for finding in report.findings]
    found = [
        plural(severities.count(severity), noun)
        for severity, noun in NOUNS.items()
        if severity in severities
    ]
    states = ", ".join(f"{len(in_state(report, s))} {word}" for s, word in STATES.items())
    checks = f"{plural(len(report.checks), 'check')}: {states}"
    return f"{', '.join(found)}; {checks}" if found else checks


def findings_by_check(report: VerifyReport) -> Iterator[tuple[CheckResult, list[Finding]]]:
    """Every check with what it found."""
    found: dict[str, list[Finding]] = {}
    for finding in report.findings:
        found.setdefault(finding.rule, []).append(finding)
    return ((check, found.get(check.rule, [])) for check in report.checks)


def counting(report: VerifyReport, findings: Iterable[Finding]) -> list[Finding]:
    """Those for which the file fails."""
    severities = {"error", "warning"} if report.strict else {"error"}
    return [finding for finding in findings if finding.severity in severities]


def path_of(report: VerifyReport) -> str:
    """The file, as it was named."""
    return printable(report.path, LIMIT)


def sentence(finding: Finding) -> str:
    """Where and what, in one line."""
    where = f"{printable(finding.address)}: " if finding.address else ""
    return f"{where}{printable(finding.message, LIMIT)}"


def remedy(finding: Finding) -> str:
    """What to do about it; may be empty."""
    return printable(finding.remedy or "", LIMIT)

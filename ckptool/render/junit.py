"""Reports as JUnit XML, in the form that Jenkins, GitLab and the others read: a suite a file.

A check that was not made is ``skipped``, with the reason; if it was required, that is a failure
like others. Errors and warnings are a ``failure``
whose type is the severity; what is only information is output of a check that did not fail.
Format: ``junit-10.xsd`` of https://github.com/jenkinsci/xunit-plugin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptool.render.states import (
    LIMIT,
    NOT_CHECKED,
    findings_by_check,
    named,
    remedy,
    sentence,
)
from ckptool.render.text import printable
from ckptool.reports import CheckResult, Finding, VerifyReport

FAILURES = frozenset({"error", "warning"})

# printable() leaves none of the characters that XML 1.0 cannot hold at all.
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})


def to_junit(reports: Sequence[VerifyReport]) -> str:
    """One document."""
    suites = "\n".join(line for report in reports for line in _suite(report))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n{suites}\n</testsuites>'


def escape(text: object) -> str:
    """Text for an attribute or for the inside of an element."""
    return printable(text, LIMIT).translate(_ENTITIES)


def _suite(report: VerifyReport) -> Iterator[str]:
    cases = list(findings_by_check(report))
    failures = sum(_is_failure(findings) for _, findings in cases)
    skipped = sum(check.state == NOT_CHECKED and not _is_failure(found) for check, found in cases)
    yield (
        f'  <testsuite name="{escape(report.path)}" tests="{len(cases)}"'
        f' failures="{failures}" errors="0" skipped="{skipped}">'
    )
    for check, findings in cases:
        yield from _case(report, check, findings)
    yield "  </testsuite>"


def _is_failure(findings: list[Finding]) -> bool:
    return any(finding.severity in FAILURES for finding in findings)


def _case(report: VerifyReport, check: CheckResult, findings: list[Finding]) -> Iterator[str]:
    yield f'    <testcase classname="{escape(report.path)}" name="{escape(named(check))}">'
    if _is_failure(findings):
        yield _failure(findings)
    elif check.state == NOT_CHECKED:
        yield f'      <skipped message="{escape(check.reason)}"/>'
    elif findings:
        yield f"      <system-out>{_told(findings)}</system-out>"
    yield "    </testcase>"


def _failure(findings: list[Finding]) -> str:
    """One a case, as most readers expect; its text names every finding."""
    first = next(finding for finding in findings if finding.severity in FAILURES)
    head = f'type="{first.severity}" message="{escape(sentence(first))}"'
    return f"      <failure {head}>{_told(findings)}</failure>"


def _told(findings: list[Finding]) -> str:
    lines = (part for finding in findings for part in (sentence(finding), remedy(finding)) if part)
    return "\n".join(map(escape, lines))

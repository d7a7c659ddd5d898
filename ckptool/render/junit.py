"""Reports as JUnit XML, in the form that Jenkins, GitLab and the others read: a suite a file.

A case is a ``failure`` exactly where the file fails for it, so that the colour is that of the exit
code: for an error, under ``--strict`` for a warning, also because something was required and not
checked. What else was not checked is ``skipped``, with the reason; what else was found is output.
Format: ``junit-10.xsd`` of https://github.com/jenkinsci/xunit-plugin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptool.render.states import (
    LIMIT,
    NOT_CHECKED,
    counting,
    findings_by_check,
    named,
    remedy,
    sentence,
)
from ckptool.render.text import printable
from ckptool.reports import Finding
from ckptool.verify_reports import CheckResult, VerifyReport

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
    cases = [_case(report, check, findings) for check, findings in findings_by_check(report)]
    failures, skipped = (sum(mark in case for case in cases) for mark in ("<failure", "<skipped"))
    yield (
        f'  <testsuite name="{escape(report.path)}" tests="{len(cases)}" failures="{failures}"'
        f' errors="0" skipped="{skipped}">'
    )
    yield from cases
    yield "  </testsuite>"


def _case(report: VerifyReport, check: CheckResult, findings: list[Finding]) -> str:
    head = f'classname="{escape(report.path)}" name="{escape(named(check))}"'
    return f"    <testcase {head}>{_outcome(report, check, findings)}</testcase>"


def _outcome(report: VerifyReport, check: CheckResult, findings: list[Finding]) -> str:
    """One element at most, as most readers expect; its text names every finding."""
    bad = counting(report, findings)
    if bad:
        kind = NOT_CHECKED if check.state == NOT_CHECKED else bad[0].severity
        head = f'type="{kind}" message="{escape(sentence(bad[0]))}"'
        return f"<failure {head}>{_told(findings)}</failure>"
    if check.state == NOT_CHECKED:
        return f'<skipped message="{escape(check.reason)}"/>'
    return f"<system-out>{_told(findings)}</system-out>" if findings else ""


def _told(findings: list[Finding]) -> str:
    return "\n".join(escape(line) for finding in findings for line in _lines(finding))


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.severity}: {sentence(finding)}"
    if finding.remedy:
        yield remedy(finding)

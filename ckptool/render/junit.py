"""Reports as JUnit XML, which Jenkins, GitLab and others read; a suite for each file.

A case is a ``failure`` exactly if the file fails because of it, so that its colour agrees with the
exit code. The causes are an error, a warning under ``--strict``, and a required check that was not
made. Other checks that were not made are ``skipped``, with the reason. Other findings are output.
Format: ``junit-10.xsd`` of https://github.com/jenkinsci/xunit-plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ckptool.render.diff_text import Row, counted, described
from ckptool.render.facts import TOP
from ckptool.render.states import (
    LIMIT,
    counting,
    findings_by_check,
    named,
    remedy,
    sentence,
    verdicts_of,
)
from ckptool.render.text import plural, printable
from ckptool.reports.base import Finding
from ckptool.reports.diff import DiffReport
from ckptool.reports.verify import CheckResult, ChoiceReport, State, VerifyReport

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
ROWS = 50  # differences that are listed for a section

# printable() escapes all characters that XML 1.0 cannot hold at all.
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})


def verdicts_to_junit(reports: Sequence[VerifyReport | ChoiceReport]) -> str:
    """Return one document with a suite for each file."""
    suites = ((_operand(report), _cases(report)) for report in verdicts_of(reports))
    return _document(suites)


def diffs_to_junit(reports: Sequence[DiffReport]) -> str:
    """Return one document with a case for each section, whose failure lists its differences."""
    return _document(
        (f"ckptool diff {report.a} {report.b}", _sections(report)) for report in reports
    )


def _document(suites: Iterable[tuple[str, list[str]]]) -> str:
    """Return the document of suites, each given by its name and its cases as XML."""
    lines = [line for name, cases in suites for line in _suite(name, cases)]
    return "\n".join([HEAD, "<testsuites>", *lines, "</testsuites>"])


def escape(text: object) -> str:
    """Escape text for an attribute or for the inside of an element."""
    return printable(text, LIMIT).translate(_ENTITIES)


def _suite(name: str, cases: list[str]) -> Iterator[str]:
    failures, skipped = (sum(mark in case for case in cases) for mark in ("<failure", "<skipped"))
    yield (
        f'  <testsuite name="{escape(name)}" tests="{len(cases)}" failures="{failures}"'
        f' errors="0" skipped="{skipped}">'
    )
    yield from cases
    yield "  </testsuite>"


def _case(suite: str, name: str, outcome: str) -> str:
    head = f'classname="{escape(suite)}" name="{escape(name)}"'
    return f"    <testcase {head}>{outcome}</testcase>"


def _operand(report: VerifyReport) -> str:
    return report.path if report.address is None else f"{report.path}#{report.address}"


def _cases(report: VerifyReport) -> list[str]:
    return [
        _case(_operand(report), named(check), _outcome(report, check, findings))
        for check, findings in findings_by_check(report)
    ]


def _outcome(report: VerifyReport, check: CheckResult, findings: list[Finding]) -> str:
    """Return one element at most, as most readers expect; its text names every finding."""
    bad = counting(report, findings)
    if bad:
        kind = State.NOT_CHECKED if check.state == State.NOT_CHECKED else bad[0].severity
        head = f'type="{kind}" message="{escape(sentence(bad[0]))}"'
        return f"<failure {head}>{_told(findings)}</failure>"
    if check.state == State.NOT_CHECKED:
        return f'<skipped message="{escape(check.reason)}"/>'
    return f"<system-out>{_told(findings)}</system-out>" if findings else ""


def _told(findings: list[Finding]) -> str:
    return "\n".join(escape(line) for finding in findings for line in _lines(finding))


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.severity}: {sentence(finding)}"
    if finding.remedy:
        yield remedy(finding)


def _sections(report: DiffReport) -> list[str]:
    rows: dict[str, list[Row]] = {}
    for row in counted(report):
        rows.setdefault(row.section, []).append(row)
    return [
        _case("ckptool.diff", section.address or TOP, _differences(rows.get(section.address, [])))
        for section in report.sections
    ]


def _differences(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    told = "\n".join(escape(f"{row.address or TOP} {described(row)}") for row in rows[:ROWS])
    return f'<failure message="{plural(len(rows), "difference")}">{told}</failure>'

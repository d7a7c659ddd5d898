"""Reports as SARIF 2.1.0, the interchange format of analysis tools: a result a finding or check.

A check that passed is a result of kind ``pass``, one that was not made is ``open`` with the reason,
and ``fail`` where it was required.
GitHub's code scanning takes every result for an alert, whatever its kind
(https://github.com/microsoft/PSRule/issues/955), and wants a line, so there is a second form for
it, which has the failures alone.
Format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ckptool.render.states import (
    LIMIT,
    NOT_CHECKED,
    PASSED,
    findings_by_check,
    named,
    remedy,
    sentence,
)
from ckptool.render.text import printable
from ckptool.reports import Finding
from ckptool.verify_reports import CheckResult, VerifyReport

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
LEVELS: Mapping[str, str] = {"error": "error", "warning": "warning", "info": "note"}
KINDS: Mapping[str, str] = {PASSED: "pass", NOT_CHECKED: "open"}

Result = dict[str, Any]


def to_sarif(reports: Sequence[VerifyReport]) -> str:
    """One document with the three states."""
    return _document(reports, (result for report in reports for result in _results(report)))


def to_code_scanning(reports: Sequence[VerifyReport]) -> str:
    """One document with the failures, for upload to GitHub's code scanning."""
    results = (result for report in reports for result in _failures(report))
    return _document(reports, (_at_first_line(result) for result in results))


def escape(text: object) -> str:
    """Text for a message: ``{0}`` is an argument there, ``[text](1)`` a link (3.11.5, 3.11.6)."""
    shown = printable(text, LIMIT)
    return shown.replace("{", "{{").replace("}", "}}").replace("](", r"]\x28")


def _document(reports: Sequence[VerifyReport], results: Iterable[Result]) -> str:
    rules = {check.rule: _rule(check) for report in reports for check in report.checks}
    driver = {"name": "ckptool", "rules": list(rules.values())}
    run = {"tool": {"driver": driver}, "results": list(results)}
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule(check: CheckResult) -> dict[str, Any]:
    return {
        "id": check.rule,
        "name": check.name,
        "shortDescription": {"text": escape(check.title)},
        "defaultConfiguration": {"level": LEVELS[check.severity]},
    }


def _results(report: VerifyReport) -> Iterator[Result]:
    for check, findings in findings_by_check(report):
        for finding in findings:
            yield _failure(report, finding)
        if check.state in KINDS and not findings:
            yield _other(report, check)


def _failures(report: VerifyReport) -> Iterator[Result]:
    return (_failure(report, finding) for finding in report.findings)


def _failure(report: VerifyReport, finding: Finding) -> Result:
    said = "\n".join(escape(part) for part in (sentence(finding), remedy(finding)) if part)
    return {
        "ruleId": finding.rule,
        "kind": "fail",
        "level": LEVELS[finding.severity],
        "message": {"text": said},
        "locations": [_location(report, finding.address)],
    }


def _other(report: VerifyReport, check: CheckResult) -> Result:
    return {
        "ruleId": check.rule,
        "kind": KINDS[check.state],
        "level": "none",
        "message": {"text": escape(check.reason or f"{named(check)} passed")},
        "locations": [_location(report, "")],
    }


def _location(report: VerifyReport, address: str) -> dict[str, Any]:
    place: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(report.path)}},
    }
    if address:
        place["logicalLocations"] = [{"fullyQualifiedName": printable(address, LIMIT)}]
    return place


def _at_first_line(result: Result) -> Result:
    for location in result["locations"]:
        location["physicalLocation"]["region"] = {"startLine": 1}
    return result


def _uri(path: str) -> str:
    """Relative stays relative: code scanning looks for it in the repository."""
    return ("file://" if path.startswith("/") else "") + quote(os.fsencode(path))

"""Reports as SARIF 2.1.0, the interchange format of analysis tools.

Each finding is a result, and so is each check without findings. A check that passed is of kind
``pass``; one that was not made is ``open`` with the reason, or ``fail`` if it was required.
GitHub's code scanning shows every result as an alert, whatever its kind
(https://github.com/microsoft/PSRule/issues/955), and needs a line number. So there is a second form
for it, which has only the failures.
Format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ckptool.render.states import LIMIT, findings_by_check, named, remedy, sentence, verdicts_of
from ckptool.render.text import printable
from ckptool.reports.base import Finding
from ckptool.reports.verify import CheckResult, ChoiceReport, State, VerifyReport

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
LEVELS: Mapping[str, str] = {"error": "error", "warning": "warning", "info": "note"}
KINDS: Mapping[str, str] = {State.PASSED: "pass", State.NOT_CHECKED: "open"}

Result = dict[str, Any]


def to_sarif(reports: Sequence[VerifyReport | ChoiceReport]) -> str:
    """Return one document with the three states."""
    verdicts = verdicts_of(reports)
    return _document(verdicts, (result for report in verdicts for result in _results(report)))


def to_code_scanning(reports: Sequence[VerifyReport | ChoiceReport]) -> str:
    """Return one document with only the failures, for upload to GitHub's code scanning."""
    verdicts = verdicts_of(reports)
    failures = (_failure(report, found) for report in verdicts for found in report.findings)
    return _document(verdicts, map(_at_first_line, failures))


def escape(text: object) -> str:
    """Escape a message, where ``{0}`` is an argument and ``[text](1)`` a link (3.11.5, 3.11.6)."""
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
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(report.path)}}}
    keys = "/".join(filter(None, (report.address, address)))
    if keys:
        place["logicalLocations"] = [{"fullyQualifiedName": printable(keys, LIMIT)}]
    return place


def _at_first_line(result: Result) -> Result:
    for location in result["locations"]:
        location["physicalLocation"]["region"] = {"startLine": 1}
    return result


def _uri(path: str) -> str:
    """Return a path as a URI; a relative one stays relative, as code scanning needs it."""
    return ("file://" if path.startswith("/") else "") + quote(os.fsencode(path))

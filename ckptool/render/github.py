"""Reports as GitHub workflow commands: an annotation a finding, and a folded list of all checks.

The runner reads commands from the log: ``::error file=…,title=…::message``, and of old
``##[error]message`` anywhere in a line. So commas and colons are escaped in properties, per cent
signs and line ends everywhere in a command, and number signs in the lines that are none.
Source: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands and
``toCommandProperties`` of https://github.com/actions/toolkit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptool.render.states import (
    LIMIT,
    STATES,
    counts,
    named,
    path_of,
    remedy,
    sentence,
    verdict,
)
from ckptool.render.text import printable
from ckptool.reports import ErrorReport, Finding
from ckptool.verify_reports import CheckResult, VerifyReport

COMMANDS: Mapping[str, str] = {"error": "error", "warning": "warning", "info": "notice"}

LINE_END = "%0A"

_DATA = {"%": "%25", "\r": "%0D", "\n": LINE_END}
_ESCAPES: Mapping[str, dict[int, str]] = {
    "property": str.maketrans(_DATA | {":": "%3A", ",": "%2C"}),
    "data": str.maketrans(_DATA),
    "line": str.maketrans({"#": r"\x23"}),
}


def to_github(reports: Sequence[VerifyReport]) -> str:
    """Lines for the log of a job."""
    return "\n".join(line for report in reports for line in _lines(report))


def errors_to_github(reports: Sequence[ErrorReport]) -> str:
    """An annotation for what could not be done at all."""
    return "\n".join(_error(report.error) for report in reports)


def escape(text: object, place: str) -> str:
    """Text for a ``property`` or the ``data`` of a command, or for a ``line`` that is none."""
    return printable(text, LIMIT).translate(_ESCAPES[place])


def _lines(report: VerifyReport) -> Iterator[str]:
    names = {check.rule: named(check) for check in report.checks}
    for finding in report.findings:
        yield _annotation(report, finding, names[finding.rule])
    said = f"{path_of(report)}: {STATES[verdict(report)]}; {counts(report)}"
    yield f"::group::{escape(said, 'data')}"
    yield from map(_check_line, report.checks)
    yield "::endgroup::"


def _annotation(report: VerifyReport, finding: Finding, title: str) -> str:
    file = escape(report.path, "property")
    parts = [escape(part, "data") for part in (sentence(finding), remedy(finding)) if part]
    command = COMMANDS[finding.severity]
    return f"::{command} file={file},title={escape(title, 'property')}::{LINE_END.join(parts)}"


def _error(error: Mapping[str, Any]) -> str:
    file = f"file={escape(error['path'], 'property')}," if error["path"] else ""
    parts = [escape(error[key], "data") for key in ("message", "hint") if error[key]]
    return f"::error {file}title=ckptool::{LINE_END.join(parts)}"


def _check_line(check: CheckResult) -> str:
    said = f"{STATES[check.state]:<11}  {named(check)}"
    return escape(f"{said}: {check.reason}" if check.reason else said, "line")

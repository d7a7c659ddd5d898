"""Reports as GitHub workflow commands: an annotation per finding, and a list of all checks.

The runner reads commands from the log: ``::error file=…,title=…::message``, and in the old form
``##[error]message`` anywhere in a line. So commas and colons are escaped in properties, per cent
signs and line ends everywhere in a command, and number signs in lines that are no commands.
Source: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands and
``toCommandProperties`` of https://github.com/actions/toolkit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptool.render.diff_text import answer_lines, counted, described
from ckptool.render.facts import TOP
from ckptool.render.states import (
    LIMIT,
    STATES,
    counts,
    faults,
    named,
    path_of,
    remedy,
    sentence,
    verdict,
    verdicts_of,
)
from ckptool.render.text import printable
from ckptool.reports.base import ErrorReport, Finding
from ckptool.reports.diff import DiffReport
from ckptool.reports.verify import CheckResult, ChoiceReport, VerifyReport

COMMANDS: Mapping[str, str] = {"error": "error", "warning": "warning", "info": "notice"}

LINE_END = "%0A"
ANNOTATIONS = 10  # of one kind that GitHub shows for one step

_DATA = {"%": "%25", "\r": "%0D", "\n": LINE_END}
_ESCAPES: Mapping[str, dict[int, str]] = {
    "property": str.maketrans(_DATA | {":": "%3A", ",": "%2C"}),
    "data": str.maketrans(_DATA),
    "line": str.maketrans({"#": r"\x23"}),
}


def verdicts_to_github(reports: Sequence[VerifyReport | ChoiceReport]) -> str:
    """Return the lines for the log of a job."""
    return "\n".join(line for report in verdicts_of(reports) for line in _lines(report))


def diffs_to_github(reports: Sequence[DiffReport]) -> str:
    """Return the answer and the worst differences, as annotations."""
    return "\n".join(line for report in reports for line in _differences(report))


def errors_to_github(reports: Sequence[ErrorReport]) -> str:
    """Return an annotation for each error."""
    return "\n".join(_error(report.error) for report in reports)


def escape(text: object, place: str) -> str:
    """Escape text for a ``property`` or the ``data`` of a command, or for another ``line``."""
    return printable(text, LIMIT).translate(_ESCAPES[place])


def _lines(report: VerifyReport) -> Iterator[str]:
    names = {check.rule: named(check) for check in report.checks}
    for finding in faults(report):
        yield _annotation(report, finding, names[finding.rule])
    said = f"{path_of(report)}: {STATES[verdict(report)]}; {counts(report)}"
    yield f"::group::{escape(said, 'data')}"
    yield from map(_check_line, report.checks)
    yield "::endgroup::"


def _annotation(report: VerifyReport, finding: Finding, title: str) -> str:
    file = escape(report.path, "property")
    part_of = "" if report.address is None else f"#{report.address}: "
    said = (part_of + sentence(finding), remedy(finding))
    parts = [escape(part, "data") for part in said if part]
    command = COMMANDS[finding.severity]
    return f"::{command} file={file},title={escape(title, 'property')}::{LINE_END.join(parts)}"


def _error(error: Mapping[str, Any]) -> str:
    file = f"file={escape(error['path'], 'property')}," if error["path"] else ""
    parts = [escape(error[key], "data") for key in ("message", "hint") if error[key]]
    return f"::error {file}title=ckptool::{LINE_END.join(parts)}"


def _check_line(check: CheckResult) -> str:
    said = f"{STATES[check.state]:<11}  {named(check)}"
    return escape(f"{said}: {check.reason}" if check.reason else said, "line")


def _differences(report: DiffReport) -> list[str]:
    if report.equal:
        said = escape(f"{report.a} and {report.b} are equal", "data")
        return [f"::notice title=ckptool diff::{said}"]
    lines = [f"::error title=ckptool diff::{escape('; '.join(answer_lines(report)), 'data')}"]
    for row in counted(report)[: ANNOTATIONS - 1]:
        title = escape(row.address or TOP, "property")
        lines.append(f"::error title={title}::{escape(described(row), 'data')}")
    return lines

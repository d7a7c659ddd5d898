"""The formats in which other programs take reports: which function writes which report how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptool.render.as_json import to_json
from ckptool.render.github import errors_to_github, to_github
from ckptool.render.junit import to_junit
from ckptool.render.markdown import to_markdown
from ckptool.render.sarif import to_code_scanning, to_sarif
from ckptool.reports import ErrorReport
from ckptool.verify_reports import ChoiceReport, VerifyReport

Renderer = Callable[[Sequence[Any]], str]  # of reports of one type


def to_documents(reports: Sequence[Any]) -> str:
    """One JSON document: an array for several reports."""
    return to_json(list(reports) if len(reports) > 1 else reports[0])


def _of_those_looked_at(renderer: Renderer) -> Renderer:
    """A choice among checkpoints as the verdicts that led to it."""

    def render(choices: Sequence[ChoiceReport]) -> str:
        return renderer([report for choice in choices for report in choice.reports])

    return render


def _verdicts(renderer: Renderer) -> dict[type, Renderer]:
    return {VerifyReport: renderer, ChoiceReport: _of_those_looked_at(renderer)}


# Name -> for each type of report, its renderer.
FORMATS: Mapping[str, Mapping[type, Renderer]] = {
    "json": dict.fromkeys((VerifyReport, ChoiceReport, ErrorReport), to_documents),
    "md": _verdicts(to_markdown),
    "github": _verdicts(to_github) | {ErrorReport: errors_to_github},
    "sarif": _verdicts(to_sarif),
    "code-scanning": _verdicts(to_code_scanning),
    "junit": _verdicts(to_junit),
}


def rendered(reports: Sequence[Any], name: str) -> str:
    """One or more reports of one type in the format of that name; no line end at its end."""
    return FORMATS[name][type(reports[0])](reports)

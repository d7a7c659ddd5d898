"""The table of outputs: the function that shows each class of report in each form.

Every function takes a command's reports of one class. Functions for text return a page, all others
a document. The table holds names of classes and functions, so that only the module of the chosen
output is imported.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from typing import Any

from ckptool.render.layout import draw
from ckptool.render.page import Page, line
from ckptool.render.text import unshortened
from ckptool.reports.base import SCHEMAS

# Pages; options choose all but the first.
TEXTS = ("text", "stat", "names", "verbose", "quiet", "list")
EXACT = frozenset({"json"})  # the reports as they are, or an error in their place
MARKUP = frozenset({"html", "junit"})  # documents that declare UTF-8 as their encoding
NO_MARKDOWN = {"ExplainReport", "ErrorReport"}  # TOML; told on the other stream
WITH_TENSORS = frozenset({"html"})  # every tensor is drawn


def _verdicts(function: str) -> dict[str, str]:
    """Return the rows of a function that shows a choice by the verdicts that led to it."""
    return {"VerifyReport": function, "ChoiceReport": function}


# Output -> class of the report -> module and function in this package.
RENDERERS: Mapping[str, Mapping[str, str]] = {
    "text": {
        "InspectReport": "inspect_text.show_inspect",
        "RunReport": "run_text.show_run",
        "ExtractReport": "write_text.show_extract",
        "PromoteReport": "write_text.show_promote",
        "ConvertReport": "write_text.show_convert",
        "AverageReport": "write_text.show_average",
        "ExplainReport": "explain_text.show_explain",
        "VerifyReport": "verify_text.show_verify",
        "ChoiceReport": "verify_text.show_choice",
        "DiffReport": "diff_text.show_diff",
        "RunDiffReport": "diff_runs_text.show_runs",
        "TextReport": "diff_text.show_lines",
        "RulesReport": "tables_text.show_rules",
        "LayoutsReport": "tables_text.show_layouts",
        "ErrorReport": "tables_text.show_error",
        "HelpReport": "help_text.show_help",
    },
    "stat": {"DiffReport": "diff_text.show_stat"},
    "names": {"DiffReport": "diff_text.show_names"},
    "verbose": {"VerifyReport": "verify_text.show_everything"},
    "list": {"InspectReport": "inspect_text.show_list"},
    "quiet": {"VerifyReport": "verify_text.show_quietly"},
    "json": dict.fromkeys(SCHEMAS, "as_json.to_documents"),
    "md": {
        **{name: "markdown.text_to_markdown" for name in SCHEMAS if name not in NO_MARKDOWN},
        **_verdicts("markdown.verdicts_to_markdown"),
        "DiffReport": "markdown.diffs_to_markdown",
    },
    "html": {
        "InspectReport": "html_inspect.inspects_to_html",
        "RunReport": "html_inspect.inspects_to_html",
        **_verdicts("html_verify.verdicts_to_html"),
        "DiffReport": "html_diff.diffs_to_html",
    },
    "github": {
        **_verdicts("github.verdicts_to_github"),
        "DiffReport": "github.diffs_to_github",
        "ErrorReport": "github.errors_to_github",
    },
    "sarif": _verdicts("sarif.to_sarif"),
    "code-scanning": _verdicts("sarif.to_code_scanning"),
    "junit": {**_verdicts("junit.verdicts_to_junit"), "DiffReport": "junit.diffs_to_junit"},
}


FORMS = tuple(name for name in RENDERERS if name not in TEXTS[1:])  # that --format takes


def outputs_of(report: str) -> tuple[str, ...]:
    """Return the names of the outputs that a class of reports has, for ``--format``."""
    return tuple(name for name in FORMS if report in RENDERERS[name])


def holds_errors(output: str) -> bool:
    """Return whether an output is a document that has errors too."""
    return output not in TEXTS and "ErrorReport" in RENDERERS.get(output, ())


def rendered(reports: Sequence[Any], output: str) -> str:
    """Return reports as a document, or as plain text; without a line end."""
    if output in TEXTS:
        stream = io.StringIO()
        with unshortened():
            draw(page_of(reports, output), stream)
        return stream.getvalue().removesuffix("\n")
    document: str = _function(output, reports[0])(reports)
    return document


def page_of(reports: Sequence[Any], output: str = "text") -> Page:
    """Yield the page of reports, with an empty line between those of different types."""
    for i, (_, same) in enumerate(groupby(reports, type)):
        alike = list(same)
        if i:
            yield line("")
        yield from _function(output, alike[0])(alike)


def _function(output: str, report: Any) -> Callable[[Sequence[Any]], Any]:
    module, _, name = RENDERERS[output][type(report).__name__].partition(".")
    function: Callable[[Sequence[Any]], Any] = getattr(
        import_module(f"ckptool.render.{module}"), name
    )
    return function

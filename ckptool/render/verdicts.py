"""What is shown of ``verify`` and its rules: verdict, faults, and what nobody looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ckptool.render import text as words
from ckptool.render.page import Grid, Line, Page, line
from ckptool.render.states import (
    FAILED,
    NOT_CHECKED,
    PASSED,
    counting,
    counts,
    in_state,
    path_of,
    remedy,
    verdict,
)
from ckptool.reports import Finding
from ckptool.verify_reports import ChoiceReport, RulesReport, VerifyReport

MESSAGE_LIMIT = 600  # characters

_STYLE = {"error": "error", "warning": "warning", "info": "info"}
_HEADS = {"error": "Errors", "warning": "Warnings", "info": "Worth knowing"}
_VERDICT_STYLE = {PASSED: "good", FAILED: "error"}


def show_verify(report: VerifyReport) -> Page:
    """The verdict; findings by severity, each with its remedy; what was not checked, and why."""
    yield _verdict(report)
    yield from _findings(report.findings)
    yield from _unchecked([report])


def show_several(reports: Sequence[VerifyReport]) -> Page:
    """Each file's verdict and findings; then, once for all, what was not checked."""
    for before, report in zip([None, *reports], reports, strict=False):
        if before is not None and (before.findings or report.findings):
            yield line("")
        yield _verdict(report) if report.findings else _headline(report)
        yield from _findings(report.findings)
    yield from _unchecked(reports)
    passed = sum(report.ok for report in reports)
    style = _VERDICT_STYLE[PASSED if passed == len(reports) else FAILED]
    yield line((f"\n{passed} of {len(reports)} passed", style))


def show_failures(report: VerifyReport) -> Page:
    """The verdict, and only that for which the file fails."""
    yield _verdict(report)
    yield from _findings(counting(report, report.findings))


def _headline(report: VerifyReport) -> Line:
    size = words.size(report.size_bytes)
    what = f"{report.format}, {size}" if report.format else f"cannot be opened, {size}"
    word = verdict(report)
    return line((path_of(report), "title"), f"  {what}: ", (word, _VERDICT_STYLE[word]))


def _verdict(report: VerifyReport) -> Line:
    required = f"\nrequired: {', '.join(map(words.printable, report.required))}"
    said = f"\n{counts(report)}{required if report.required else ''}"
    return line(*_headline(report).pieces, said)


# ----------------------------------------------------------------------------------------- findings


def _findings(findings: Iterable[Finding]) -> Page:
    for severity, alike in groupby(findings, key=lambda found: found.severity):
        yield line((f"\n{_HEADS[severity]}", "title"))
        grid = Grid("left", "left")
        for found in alike:
            grid.add_row(*_finding(found))
            if found.remedy:
                grid.add_row("", line(("→ ", "label"), remedy(found)))
        yield grid


def _finding(found: Finding) -> tuple[Line, Line]:
    where = f"{words.printable(found.address)}: " if found.address else ""
    message = words.printable(found.message, MESSAGE_LIMIT)
    return line("  ", (found.rule, _STYLE[found.severity])), line((where, "name"), message)


# -------------------------------------------------------------------------------------- not checked


def _unchecked(reports: Sequence[VerifyReport]) -> Page:
    """A line a reason, with the rules that it holds for, and in how many of several files."""
    found = dict(_by_reason(reports))
    if not found:
        return
    yield line(("\nNot checked", "title"))
    grid = Grid("left", "left")
    for reason, (rules, files) in found.items():
        part = f", in {files} of {len(reports)} files" if files < len(reports) else ""
        grid.add_row("", line(reason, (f"  {spans(rules, _order(reports))}{part}", "label")))
    yield grid


def _by_reason(reports: Sequence[VerifyReport]) -> Iterator[tuple[str, tuple[list[str], int]]]:
    unchecked = [(i, c) for i, r in enumerate(reports) for c in in_state(r, NOT_CHECKED)]
    for reason in dict.fromkeys(check.reason for _, check in unchecked):
        alike = [(file, check.rule) for file, check in unchecked if check.reason == reason]
        rules = list(dict.fromkeys(rule for _, rule in alike))
        yield words.printable(reason, MESSAGE_LIMIT), (rules, len({file for file, _ in alike}))


def _order(reports: Sequence[VerifyReport]) -> list[str]:
    return list(dict.fromkeys(check.rule for report in reports for check in report.checks))


def spans(rules: Sequence[str], order: Sequence[str]) -> str:
    """``CK101, CK103–CK106``: neighbours in the table, three or more, are a span."""
    places = {rule: place for place, rule in enumerate(order)}
    runs: list[list[str]] = []
    for rule in sorted(rules, key=places.__getitem__):
        if runs and places[rule] == places[runs[-1][-1]] + 1:
            runs[-1].append(rule)
        else:
            runs.append([rule])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


# -------------------------------------------------------------------------------------------- rules


def show_choice(report: ChoiceReport) -> Page:
    """The path alone, for ``$(...)``; where none passes, why each did not."""
    if report.path is not None:
        yield line(report.path, wraps=False)
        return
    yield line(("none passes", "error"))
    for one in report.reports:
        yield line("")
        yield from show_verify(one)


def show_rules(report: RulesReport) -> Page:
    """One rule in full, or a line for each."""
    if len(report.rules) == 1:
        (rule,) = report.rules
        yield line((rule.id, "title"), f"  {rule.name}, ", (rule.severity, _STYLE[rule.severity]))
        yield line(f"\n{rule.meaning}")
        yield line(("what to do: ", "label"), rule.remedy)
        yield line(("reads: ", "label"), _READS[rule.cost])
        yield line(("runs: ", "label"), "always" if rule.default else "when required or selected")
        return
    grid = Grid("left", "left", "left", "left")
    grid.add_row(*(line((head, "label")) for head in ("rule", "name", "severity", "meaning")))
    for rule in report.rules:
        severity = line((rule.severity, _STYLE[rule.severity]))
        grid.add_row(line((rule.id, "name")), rule.name, severity, rule.meaning)
    yield grid


_READS = {
    "tree": "headers and pickles, and a sample of values",
    "bytes": "every byte, with --bytes",
    "values": "every value, with --values",
}


VIEWS: Mapping[str, Callable[[Any], Page]] = {
    "VerifyReport": show_verify,
    "VerifyReports": show_several,
    "ChoiceReport": show_choice,
    "RulesReport": show_rules,
}

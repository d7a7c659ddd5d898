"""The text of ``ckptool verify``: the verdict, findings, and checks that were not made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from ckptool.render import text as words
from ckptool.render.page import Grid, Line, Page, line, one_by_one
from ckptool.render.states import counting, counts, in_state, path_of, remedy, verdict
from ckptool.reports.base import Finding
from ckptool.reports.verify import ChoiceReport, ResumeReport, ResumeVerdict, State, VerifyReport

MESSAGE_LIMIT = 600  # characters

_HEADS = {"error": "Errors", "warning": "Warnings", "info": "Worth knowing"}
_VERDICT_STYLE = {State.PASSED: "good", State.FAILED: "error"}


def show_verify(reports: Sequence[VerifyReport]) -> Page:
    """Yield the verdict and findings of each file, then once for all the checks not made."""
    several = len(reports) > 1
    for before, report in zip([None, *reports], reports, strict=False):
        if before is not None and (before.findings or report.findings):
            yield line("")
        yield _verdict(report) if report.findings or not several else _headline(report)
        yield from _certificate(report.resume)
        yield from _findings(report.findings)
    yield from _unchecked(reports)
    if several:
        passed = sum(report.ok for report in reports)
        style = _VERDICT_STYLE[State.PASSED if passed == len(reports) else State.FAILED]
        yield line((f"\n{passed} of {len(reports)} passed", style))


def show_failures(report: VerifyReport) -> Page:
    """Yield the verdict, and only the findings for which the file fails."""
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


# --------------------------------------------------------------------------------------- to resume


def _certificate(report: ResumeReport | None) -> Page:
    """Yield whether the run goes on from here, then a line for each loss and condition."""
    if report is None:
        return
    because, *others = report.because or ("",)
    more = f" (and {words.plural(len(others), 'more error')})" if others else ""
    said, style = {
        ResumeVerdict.TO_THE_BIT: ("yes, to the bit", "good"),
        ResumeVerdict.WITH_LOSSES: ("yes, but not to the bit", "good"),
        ResumeVerdict.NO: (f"no: {words.printable(because, MESSAGE_LIMIT)}{more}", "error"),
    }[report.verdict]
    yield line(("Resume: ", "title"), (said, style), (f"  {_circumstances(report)}", "label"))
    if report.verdict == ResumeVerdict.NO:
        return
    yield from (line(f"  lost: {words.printable(lost)}") for lost in report.lost)
    yield from (line(f"  provided that {words.printable(each)}") for each in report.provided)


def _circumstances(report: ResumeReport) -> str:
    """Return ``(Lightning, 2 processes)``; nothing where the file could not be opened."""
    count = report.processes
    processes = "" if count is None else "1 process" if count == 1 else f"{count:,} processes"
    stated = ", ".join(filter(None, (report.trainer, processes)))
    return f"({stated})" if stated else ""


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
    return line("  ", (found.rule, found.severity)), line((where, "name"), message)


# -------------------------------------------------------------------------------------- not checked


def _unchecked(reports: Sequence[VerifyReport]) -> Page:
    """Yield a line for each reason, with the rules and the number of files that it holds for."""
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
    unchecked = [(i, c) for i, r in enumerate(reports) for c in in_state(r, State.NOT_CHECKED)]
    for reason in dict.fromkeys(check.reason for _, check in unchecked):
        alike = [(file, check.rule) for file, check in unchecked if check.reason == reason]
        rules = list(dict.fromkeys(rule for _, rule in alike))
        yield words.printable(reason, MESSAGE_LIMIT), (rules, len({file for file, _ in alike}))


def _order(reports: Sequence[VerifyReport]) -> list[str]:
    return list(dict.fromkeys(check.rule for report in reports for check in report.checks))


def spans(rules: Sequence[str], order: Sequence[str]) -> str:
    """Return ``CK101, CK103–CK106``: three or more neighbours in the table become a span."""
    places = {rule: place for place, rule in enumerate(order)}
    runs: list[list[str]] = []
    for rule in sorted(rules, key=places.__getitem__):
        if runs and places[rule] == places[runs[-1][-1]] + 1:
            runs[-1].append(rule)
        else:
            runs.append([rule])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


# -------------------------------------------------------------------------------------------- rules


@one_by_one
def show_choice(report: ChoiceReport) -> Page:
    """Yield only the path, for ``$(...)``; if no checkpoint passes, yield the reasons of each."""
    if report.path is not None:
        # A shell gets the path unchanged; a terminal gets control characters escaped.
        yield line(report.path if words.is_whole() else words.printable(report.path), wraps=False)
        return
    yield line(("none passes", "error"))
    for one in report.reports:
        yield line("")
        yield from show_verify([one])

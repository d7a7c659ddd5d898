"""The text of ``ckptool verify``: findings, checks that were not made, and last the verdict.

In the log of a job people read the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from ckptool.regex import regex
from ckptool.render import text as words
from ckptool.render.facts import file_kind
from ckptool.render.page import Grid, Line, Page, Piece, line, one_by_one
from ckptool.render.states import (
    answers,
    because_of,
    counting,
    faults,
    found_by_severity,
    in_state,
    merged,
    path_of,
    remedy,
    told_once,
    verdict,
)
from ckptool.reports.base import Finding, Severity
from ckptool.reports.verify import (
    ChoiceReport,
    ProofReport,
    ResumeReport,
    ResumeVerdict,
    State,
    VerifyReport,
)

MESSAGE_LIMIT = 600  # characters
FOLDED = 140  # characters of the remedy of a note
NUMBER = regex(r"\d[\d.,]*(e[+-]?\d+)?")

Fault = tuple[str, str, str]  # rule, key path, and what is wrong

_HEADS = {"error": "Errors", "warning": "Warnings", "info": "Notes"}
_VERDICT_STYLE = {State.PASSED: "good", State.FAILED: "error"}


def show_verify(reports: Sequence[VerifyReport]) -> Page:
    """Yield the findings of each file, then the verdict; what was not checked is a number."""
    yield from _verdicts(reports, told_once)
    yield from _summary(reports, hint=" (--verbose lists them)")


def show_everything(reports: Sequence[VerifyReport]) -> Page:
    """Yield the findings of each file, the checks not made with their reasons, and the verdict."""
    yield from _verdicts(reports, told_once, _fault, folds=False)
    yield from _unchecked(reports)
    yield from _summary(reports)


def show_quietly(reports: Sequence[VerifyReport]) -> Page:
    """Yield only the files that fail, with the findings for which they do."""
    failed = [report for report in reports if not report.ok]
    yield from _verdicts(failed, lambda report: counting(report, told_once(report)))


def show_failures(report: VerifyReport) -> Page:
    """Yield the findings for which a file fails, and the verdict."""
    yield from _verdicts([report], lambda report: counting(report, told_once(report)))
    yield from _summary([report])


def _verdicts(
    reports: Sequence[VerifyReport],
    chosen: Callable[[VerifyReport], list[Finding]],
    fault: Callable[[Finding], Fault] | None = None,
    *,
    folds: bool = True,
) -> Page:
    """Yield each file with its findings; a finding that several files share is told once."""
    fault = fault or _kind_of_fault
    common = _common(reports, fault)
    was_long = False
    for i, report in enumerate(reports):
        findings = [each for each in chosen(report) if fault(each) not in common]
        is_long = bool(findings or report.resume or report.proof)
        if i and (is_long or was_long):
            yield line("")
        yield _headline(report, tells=len(reports) > 1)
        if is_long or len(reports) == 1:
            yield from required(report)
        yield from certificate(report.resume)
        yield from proven(report.proof)
        yield from _findings(findings, folds=folds)
        was_long = is_long
    if common:
        yield line((f"\nIn several of the {len(reports):,} files", "title"))
        grid = Grid("left", "text")
        for found in common.values():
            others = len({each.message for each in found.values()}) > 1
            such = f", such as {words.printable(Path(next(iter(found))).name)}" if others else ""
            where = f"in {len(found):,} files{such}: "
            _add(grid, next(iter(found.values())), where, folds=folds)
        yield grid


def _fault(found: Finding) -> Fault:
    return found.rule, found.address, found.message


def _kind_of_fault(found: Finding) -> Fault:
    """Return what files share whose faults differ only in numbers: "82 %", "67 %" of a run."""
    return found.rule, found.address, NUMBER.sub("#", found.message)


def _common(
    reports: Sequence[VerifyReport], fault: Callable[[Finding], Fault]
) -> dict[Fault, dict[str, Finding]]:
    """Return the warnings and notes that files share, by the paths of these files."""
    shared: dict[Fault, dict[str, Finding]] = {}
    for report in reports:
        fails = counting(report, report.findings)
        for each in told_once(report):
            if each not in fails:
                shared.setdefault(fault(each), {}).setdefault(path_of(report), each)
    return {fault: found for fault, found in shared.items() if len(found) > 1}


def _headline(report: VerifyReport, *, tells: bool) -> Line:
    what = file_kind(report.format) if report.format else "cannot be opened"
    if report.format or report.size_bytes:  # else unknown: a directory, or behind a URL
        what += f", {words.size(report.size_bytes)}"
    word = verdict(report)
    told = (": ", (word, _VERDICT_STYLE[word])) if tells else ()
    return line((path_of(report), "title"), f"  {what}", *told)


def _summary(reports: Sequence[VerifyReport], hint: str = "") -> Page:
    """Yield the verdict: of one file with the counts of its checks, of several with theirs."""
    passed = sum(report.ok for report in reports)
    word = State.PASSED if passed == len(reports) else State.FAILED
    unchecked = {c.rule for report in reports for c in in_state(report, State.NOT_CHECKED)}
    rest = f"; {len(unchecked)} not checked{hint}" if unchecked else ""
    if len(reports) == 1:
        found = [
            *found_by_severity(faults(reports[0])),
            f"{len(in_state(reports[0], State.PASSED))} ok",
        ]
        yield line("\n", (word, _VERDICT_STYLE[word]), f": {', '.join(found)}{rest}")
        return
    yield line((f"\n{passed:,} of {len(reports):,} passed", _VERDICT_STYLE[word]), rest)


# -------------------------------------------------------------------------------------- required


def required(report: VerifyReport) -> Page:
    """Yield an answer to each requirement of which the report says no more."""
    for title, answer, is_yes in answers(report):
        yield line((f"{title}: ", "title"), (answer, "good" if is_yes else "error"))


# --------------------------------------------------------------------------------------- to resume


def certificate(report: ResumeReport | None) -> Page:
    """Yield whether the run goes on from here, then a line for each loss and condition."""
    if report is None:
        return
    yield line(("Resume: ", "title"), _resumes(report), (f"  {_circumstances(report)}", "label"))
    if not report.goes_on:
        return
    fails = (_ACCEPT + ",".join(report.without),) if report.without else ()
    told = (("lost", report.lost), ("provided that", report.provided), ("fails because", fails))
    for label, texts in told:
        grid = Grid("left", "text")
        for text in texts:
            grid.add_row(line(f"  {label}"), words.printable(text))
        yield grid


_ACCEPT = "the run could store what is lost; to accept the loss: --ignore-rules "


def _resumes(report: ResumeReport) -> Piece:
    if not report.goes_on:
        return (because_of(len(report.because)), "error")
    if report.verdict is ResumeVerdict.TO_THE_BIT:
        return ("yes, to the bit", "good")
    return ("yes, but not exactly the same", "warning" if report.without else "good")


def _circumstances(report: ResumeReport) -> str:
    """Return ``(Lightning, 2 processes)``; nothing where the file could not be opened."""
    count = report.processes
    processes = "" if count is None else "1 process" if count == 1 else f"{count:,} processes"
    stated = ", ".join(filter(None, (report.trainer, processes)))
    return f"({stated})" if stated else ""


# --------------------------------------------------------------------------------------- provenance


def proven(report: ProofReport | None) -> Page:
    """Yield which weights of another checkpoint these are."""
    if report is None:
        return
    count = f"{report.tensors:,} of {words.plural(report.tensors, 'tensor')}"
    cast = f"equal after a cast to {' and '.join(report.casts)}" if report.casts else "equal"
    are = "are" if report.casts else "are bit for bit"
    kind = KINDS.get(report.kind, f"the {words.printable(report.kind)} weights")
    at = f" at {words.printable(report.address)}" if report.address else ""
    buffers = ", with buffers of its model" if report.buffers == "model" else ""
    yield line(
        (cast, "good"), f": {count} {are} {kind}{at} of {words.printable(report.path)}{buffers}"
    )


# Kind of weights -> words for it; others are called as they are.
KINDS = {
    "ema": "the EMA",
    "raw": "the raw weights",
    "mean": "the mean of the checkpoints",
    "weights": "the weights",
}


# ----------------------------------------------------------------------------------------- findings


def _findings(findings: Iterable[Finding], *, folds: bool) -> Page:
    for severity, alike in groupby(findings, key=lambda found: found.severity):
        yield line((f"\n{_HEADS[severity]}", "title"))
        grid = Grid("left", "text")
        for found in merged(alike):
            _add(grid, found, folds=folds)
        yield grid


def _add(grid: Grid, found: Finding, where: str = "", *, folds: bool) -> None:
    """Add the rows of a finding: what is wrong, and the remedy."""
    label, message = _finding(found)
    grid.add_row(label, line((where, "label"), *message.pieces))
    if found.remedy:
        grid.add_row("", line(("→ ", "label"), _remedy(found, folds=folds)))


def _remedy(found: Finding, *, folds: bool) -> str:
    """Return the remedy; of a note, which fails nothing, no more than the beginning."""
    said = remedy(found)
    if not folds or found.severity is not Severity.INFO or len(said) <= FOLDED:
        return said
    return f"{said[:FOLDED].rpartition(' ')[0]} … (--verbose has all of it)"


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
    grid = Grid("left", "text")
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
    """Yield only the path, for ``$(...)``; the reasons are in ``passed_over``, for stderr."""
    if report.path is not None:
        # A shell gets the path unchanged; a terminal gets control characters escaped.
        yield line(report.path if words.is_whole() else words.printable(report.path), wraps=False)
        return
    yield line(("none passes", "error"))

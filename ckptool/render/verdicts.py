"""What is shown of ``verify`` and of its rules: the verdict, the faults, and what nobody looked at."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from ckptool.render import text as words
from ckptool.render.page import Grid, Line, Page, line
from ckptool.render.states import counting
from ckptool.reports import CheckResult, Finding, RulesReport, VerifyReport

_STYLE = {"error": "error", "warning": "warning", "info": "info"}
_HEADS = {"error": "Errors", "warning": "Warnings", "info": "Worth knowing"}
MESSAGE_LIMIT = 600


def show_verify(report: VerifyReport) -> Page:
    """The verdict; findings by severity, each with its remedy; what was not checked, and why."""
    yield _verdict(report)
    yield from _findings(report.findings)
    yield from _unchecked(report.checks)


def show_failures(report: VerifyReport) -> Page:
    """The verdict, and only that for which the file fails."""
    yield _verdict(report)
    yield from _findings(counting(report, report.findings))


def _verdict(report: VerifyReport) -> Line:
    word = ("passed", "good") if report.ok else ("failed", "error")
    size = words.size(report.size_bytes)
    what = f"{report.format}, {size}" if report.format else f"cannot be opened, {size}"
    name = words.printable(Path(report.path).name)
    counts = words.plural(len(report.checks), "rule")
    tally = ", ".join(
        f"{_count(report.checks, state)} {state.replace('-', ' ')}" for state in _STATES
    )
    required = f"\nrequired: {', '.join(map(words.printable, report.required))}"
    return line(
        (name, "title"), f"  {what}: ", word, f"\n{counts}: {tally}",
        required if report.required else "",
    )  # fmt: skip


_STATES = ("passed", "failed", "not-checked")


def _count(checks: Iterable[CheckResult], state: str) -> int:
    return sum(check.state == state for check in checks)


def _findings(findings: Iterable[Finding]) -> Page:
    for severity, alike in groupby(findings, key=lambda found: found.severity):
        yield line((f"\n{_HEADS[severity]}", "title"))
        for found in alike:
            yield from _finding(found)


def _finding(found: Finding) -> Page:
    style = _STYLE[found.severity]
    where = f"{words.printable(found.address)}: " if found.address else ""
    message = words.printable(found.message, MESSAGE_LIMIT)
    yield line("  ", (found.rule, style), " ", (where, "name"), message)
    if found.remedy:
        yield line(("        -> ", "quiet"), words.printable(found.remedy, MESSAGE_LIMIT))


def _unchecked(checks: tuple[CheckResult, ...]) -> Page:
    """One line a reason, with the rules that it holds for."""
    reasons: dict[str, list[str]] = {}
    for check in checks:
        if check.state == "not-checked":
            reasons.setdefault(check.reason, []).append(check.rule)
    if reasons:
        yield line(("\nNot checked", "title"))
    for reason, rules in reasons.items():
        yield line("  ", (", ".join(rules), "label"), f"  {words.printable(reason, MESSAGE_LIMIT)}")


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

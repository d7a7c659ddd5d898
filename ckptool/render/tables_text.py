"""The text of ckptool's own tables (rules, layouts of EMA weights), and of errors."""

from __future__ import annotations

from ckptool.render import text as words
from ckptool.render.facts import short
from ckptool.render.page import Grid, Page, line, one_by_one
from ckptool.reports.base import ErrorReport, LayoutsReport
from ckptool.reports.verify import RulesReport


@one_by_one
def show_rules(report: RulesReport) -> Page:
    """Yield one rule in full, or a line for each of several."""
    if len(report.rules) == 1:
        (rule,) = report.rules
        yield line((rule.id, "title"), f"  {rule.name}, ", (rule.severity, rule.severity))
        yield line(f"\n{rule.meaning}")
        yield line(("what to do: ", "label"), rule.remedy)
        yield line(("reads: ", "label"), _READS[rule.cost])
        yield line(("runs: ", "label"), "always" if rule.default else "when required or selected")
        return
    grid = Grid("left", "left", "left", "text", heads=("name", "severity", "meaning"), drops=(1,))
    for rule in report.rules:
        severity = line((rule.severity, rule.severity))
        grid.add_row(line((rule.id, "name")), rule.name, severity, rule.meaning)
    yield grid


_READS = {
    "tree": "headers and pickles, and a sample of values",
    "bytes": "every byte, with --bytes",
    "values": "every value, with --values",
}


@one_by_one
def show_layouts(report: LayoutsReport) -> Page:
    """Yield a line for each layout: its name, the place of the EMA weights, and their writer."""
    grid = Grid("left", "text", "text", heads=("EMA weights at", "written by"))
    for row in report.layouts:
        where = f"{row.ema_at} (holds the raw weights)" if row.swapped else row.ema_at
        grid.add_row(
            line((short(row.name), "name")), line(words.printable(where)), line(short(row.library))
        )
    yield grid


@one_by_one
def show_error(report: ErrorReport) -> Page:
    """Yield one ``error:`` line, and one ``hint:`` line if there is a hint."""
    error = report.error
    where = [words.printable(error[key], 300) for key in ("path", "address") if error.get(key)]
    message = ": ".join([*where, words.printable(error["message"], 1000)])
    yield line(("error: ", "error"), message, wraps=False)
    if error.get("hint"):
        yield line(("hint: ", "info"), words.printable(error["hint"], 600), wraps=False)

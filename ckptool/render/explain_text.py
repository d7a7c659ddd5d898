"""The text of ckptool convert --explain: a file of rules, with the rest as comments in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ckptool.render import text as words
from ckptool.render.page import Page, line, one_by_one
from ckptool.reports.write import ExplainedTensor, ExplainReport


@one_by_one
def show_explain(report: ExplainReport) -> Page:
    """Yield the answer, what is not explained, and the rules; nothing is wrapped."""
    for comment in _comments(report):
        yield line(f"# {comment}", wraps=False)
    for rule in report.rules.splitlines():
        yield line(words.printable(rule, len(rule)), wraps=False)


def _comments(report: ExplainReport) -> Iterator[str]:
    total = len(report.tensors)
    yield f"{words.printable(report.path)} from {words.printable(report.source)}"
    made = sum(each.by_rules for each in report.tensors)
    by_rules = f", {made} of them by these rules" if made < report.explained else ""
    yield f"explained: {report.explained} of {words.plural(total, 'tensor')}{by_rules}"
    kinds = Counter(map(_kind, report.tensors))
    for kind, count in kinds.items():
        yield f"  {count} {kind}"
    for each in report.tensors:
        if each.kind == "unexplained":
            yield f"unexplained: {words.printable(each.name)}: {words.printable(each.note, 200)}"
    for each in report.tensors:
        if each.kind != "unexplained" and not each.by_rules:
            yield f"not by rules: {words.printable(each.name)}: {words.printable(each.note, 200)}"
    if report.unused:
        yield f"not used: {words.some(report.unused)}"


def _kind(each: ExplainedTensor) -> str:
    turned = ", transposed" if each.transposed else ""
    cast = f", cast from {each.cast}" if each.cast else ""
    return f"{each.kind}{turned}{cast}"

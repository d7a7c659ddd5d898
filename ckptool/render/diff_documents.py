"""The report of ``ckptool diff`` for other programs: Markdown, GitHub's annotations, JUnit.

Texts from files are made printable first and then escaped as the form wants it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from ckptool.diff_reports import DiffReport, GroupDistance, TensorDifference, ValueDifference
from ckptool.render import text as words
from ckptool.render.diff_text import (
    KINDS,
    TOP,
    answer_lines,
    form_of,
    number,
    tensor_cells,
    value_text,
    worst_first,
)
from ckptool.render.markdown import code

ROWS = 50  # tensors and values that are listed for people
ANNOTATIONS = 10  # of a kind that GitHub shows of one step

Row = TensorDifference | ValueDifference

# ----------------------------------------------------------------------------------------- markdown


def to_markdown(report: DiffReport) -> str:
    """For a comment on a pull request: the answer, and tables of the evidence."""
    return "\n".join(_markdown(report))


def _markdown(report: DiffReport) -> Iterator[str]:
    word = "equal" if report.equal else "different"
    yield f"### {word}: {_code(report.a)} and {_code(report.b)}"
    yield ""
    yield from (f"- {_plain(line)}" for line in answer_lines(report))
    yield from (f"- not compared: {_plain(said)}" for said in report.summary.not_compared)
    if report.tensors:
        heads = ("tensor", "", "max abs", "max rel", "rms", "relative", "differ", "worst at")
        worst = worst_first(report.tensors)[:ROWS]
        yield from _table(heads, [(row.address, row.kind, *tensor_cells(row)) for row in worst])
    if report.values:
        values = [(row.address, row.kind, value_text(row)) for row in report.values[:ROWS]]
        yield from _table(("value", "", "first → second"), values)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, *cells in rows:
        yield f"| {_code(name or TOP)} | {' | '.join(map(_plain, cells))} |"


def _code(text: str) -> str:
    return code(words.printable(text, 200))


def _plain(text: str) -> str:
    """Without the characters by which Markdown and HTML mean something, or an address a link."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!@&:]|(?<=[wW]{3})\.)", r"\\\1", text)


# ------------------------------------------------------------------------------------------- GitHub


def to_github(report: DiffReport) -> str:
    """Workflow commands, which GitHub shows at the job: the answer and the worst differences."""
    if report.equal:
        return f"::notice title=ckptool diff::{_data(f'{report.a} and {report.b} are equal')}"
    rows = _counted(report)
    said = [f"::error title=ckptool diff::{_data('; '.join(answer_lines(report)))}"]
    said += [f"::error title={_property(row.address or TOP)}::{_data(_said(row))}" for row in rows]
    return "\n".join(said[:ANNOTATIONS])


def _data(text: str) -> str:
    return words.printable(text, 2000).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _counted(report: DiffReport) -> list[Row]:
    rows: list[Row] = [*worst_first(report.tensors), *report.values]
    return [row for row in rows if row.kind != "within"]


def _said(row: Row) -> str:
    if isinstance(row, ValueDifference):
        return f"{KINDS[row.kind]}: {value_text(row)}"
    numbers = row.distance
    far = f": max abs {number(numbers.max_abs)}, {numbers.differing} differ" if numbers else ""
    if numbers and numbers.nonfinite:
        far += f", {numbers.nonfinite} NOT FINITE"
    form = form_of(row)
    return f"{KINDS[row.kind]}{far}{'; ' if form else ''}{form}"


# -------------------------------------------------------------------------------------------- JUnit


def to_junit(report: DiffReport) -> str:
    """A suite with a case for each section; its failures are the differences."""
    rows: dict[str, list[Row]] = {}
    for row in _counted(report):
        rows.setdefault(row.section, []).append(row)
    cases = [_case(section, rows.get(section.address, [])) for section in report.sections]
    failures = sum("<failure" in case for case in cases)
    name = quoteattr(f"ckptool diff {words.printable(report.a)} {words.printable(report.b)}")
    head = f'<testsuite name={name} tests="{len(cases)}" failures="{failures}" errors="0">'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *cases, "</testsuite>"])


def _case(section: GroupDistance, rows: Sequence[Row]) -> str:
    name = quoteattr(words.printable(section.address or TOP))
    if not rows:
        return f'  <testcase classname="ckptool.diff" name={name}/>'
    lines = (f"{words.printable(row.address or TOP)} {_said(row)}" for row in rows[:ROWS])
    message = quoteattr(words.plural(len(rows), "difference"))
    failure = f"<failure message={message}>{escape(chr(10).join(lines))}</failure>"
    return f'  <testcase classname="ckptool.diff" name={name}>{failure}</testcase>'

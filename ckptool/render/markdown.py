"""Reports as GitHub-flavoured Markdown: for job summaries, comments and notes of a release.

Names from a file may hold whatever Markdown would obey: links, HTML, pipes that end a cell,
``@somebody``. One rule makes all of it harmless, and reads well: a word that is not a plain word or
number is shown as code, where nothing is obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckptool.render.states import (
    FAILED,
    LIMIT,
    NOT_CHECKED,
    PASSED,
    STATES,
    counts,
    in_state,
    named,
    path_of,
    verdict,
)
from ckptool.render.text import printable, size
from ckptool.reports import Finding
from ckptool.verify_reports import CheckResult, VerifyReport

MARKS: Mapping[str, str] = {PASSED: "✅", FAILED: "❌", NOT_CHECKED: "⬜"}
SEVERITY_MARKS: Mapping[str, str] = {"error": "❌", "warning": "⚠️", "info": "ℹ️"}
MAX_ROWS = 200  # findings shown of one file; a job summary may have 1 MiB

# Letters with hyphens or apostrophes between them, numbers, lone signs; perhaps in parentheses.
_PLAIN = re.compile(
    r"\(?([^\W\d_]+(['’-][^\W\d_]+)*|\d+([.,]\d+)*%?|[=+/%×…–-])?[.,;:!?)]*", re.UNICODE
)
_CODE = str.maketrans({"`": r"\x60", "|": r"\x7c"})  # the two that end code, or its cell


def to_markdown(reports: Sequence[VerifyReport]) -> str:
    """A section a file, under a table of all when there are several."""
    blocks = [*_overview(reports)] if len(reports) > 1 else []
    for report in reports:
        blocks += _section(report)
    return "\n\n".join(blocks)


def inline(text: object) -> str:
    """Text for a line or a cell; empty text is a dash."""
    return " ".join(map(_word, printable(text, LIMIT).split())) or "–"


def _word(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    core = word.rstrip(".,;:") or word
    return code(core) + word[len(core) :]


def code(text: str) -> str:
    """Printable text as code, for a line or a cell."""
    return f"`{text.translate(_CODE)}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _overview(reports: Sequence[VerifyReport]) -> Iterator[str]:
    passed = sum(report.ok for report in reports)
    mark = MARKS[PASSED if passed == len(reports) else FAILED]
    yield f"## {mark} {passed} of {len(reports)} passed"
    yield table(("", "File", "Result"), map(_overview_row, reports))


def _overview_row(report: VerifyReport) -> tuple[str, str, str]:
    return (_marked(verdict(report)), inline(path_of(report)), counts(report))


def _marked(state: str) -> str:
    return f"{MARKS[state]} {STATES[state]}"


def _section(report: VerifyReport) -> Iterator[str]:
    yield f"### {_marked(verdict(report))}: {inline(path_of(report))}"
    yield _facts(report)
    if report.findings:
        shown = report.findings[:MAX_ROWS]
        yield table(("", "Rule", "Where", "What", "What to do"), map(_finding_row, shown))
    if len(report.findings) > MAX_ROWS:
        yield f"… and {len(report.findings) - MAX_ROWS} more."
    if unchecked := in_state(report, NOT_CHECKED):
        yield _folded(NOT_CHECKED, len(unchecked), table(("Why", "Checks"), _reasons(unchecked)))
    if passed := in_state(report, PASSED):
        yield _folded(PASSED, len(passed), _named(passed))


def _facts(report: VerifyReport) -> str:
    kind = inline(report.format or "not readable")
    required = f" Required: {inline(', '.join(report.required))}." if report.required else ""
    return f"{kind}, {size(report.size_bytes)}.{required} {counts(report).capitalize()}."


def _finding_row(finding: Finding) -> tuple[str, ...]:
    return (
        f"{SEVERITY_MARKS[finding.severity]} {finding.severity}",
        inline(finding.rule),
        inline(finding.address),
        inline(finding.message),
        inline(finding.remedy or ""),
    )


def _reasons(unchecked: list[CheckResult]) -> Iterator[tuple[str, str]]:
    """Checks that were not made for the same reason stand in one row."""
    for reason in dict.fromkeys(check.reason for check in unchecked):
        yield inline(reason), _named([check for check in unchecked if check.reason == reason])


def _named(checks: list[CheckResult]) -> str:
    return ", ".join(inline(named(check)) for check in checks)


def _folded(state: str, number: int, content: str) -> str:
    summary = f"{MARKS[state]} {number} {STATES[state]}"
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"

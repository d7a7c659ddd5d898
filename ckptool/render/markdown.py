"""Reports as GitHub-flavoured Markdown, for job summaries, comments and release notes.

Names from a file may hold text that Markdown interprets: links, HTML, pipes that end a cell,
``@somebody``. One rule makes all of it harmless, and reads well: a word that is not a plain word or
number is shown as code, where nothing is interpreted. Python statements and commands that a remedy
tells people to paste are one piece of code, which reads back unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ckptool.regex import regex
from ckptool.render.diff_text import answer_lines, listed
from ckptool.render.facts import TOP, file_kind
from ckptool.render.outputs import rendered
from ckptool.render.states import (
    LIMIT,
    STATES,
    counts,
    faults,
    in_state,
    named,
    path_of,
    verdict,
    verdicts_of,
)
from ckptool.render.text import printable, size
from ckptool.reports.base import Finding
from ckptool.reports.diff import DiffReport
from ckptool.reports.verify import CheckResult, ChoiceReport, State, VerifyReport

MARKS: Mapping[str, str] = {State.PASSED: "✅", State.FAILED: "❌", State.NOT_CHECKED: "⬜"}
SEVERITY_MARKS: Mapping[str, str] = {"error": "❌", "warning": "⚠️", "info": "ℹ️"}
ROWS = 50  # tensors and values shown for a comparison
MAX_ROWS = 200  # findings shown for one file; a job summary may have 1 MiB

# Plain words: letters with hyphens or apostrophes between, numbers, lone signs; parentheses too.
_PLAIN = regex(r"\(?([^\W\d_]+(['’-][^\W\d_]+)*|\d+([.,]\d+)*%?|[=+/%×…–-])?[.,;:!?)]*", re.UNICODE)
_CODE = str.maketrans({"`": r"\x60", "|": r"\x7c"})  # a backtick ends code, a pipe its cell


def verdicts_to_markdown(reports: Sequence[VerifyReport | ChoiceReport]) -> str:
    """Return a section for each file, under a table of all when there are several."""
    verdicts = verdicts_of(reports)
    blocks = [*_overview(verdicts)] if len(verdicts) > 1 else []
    for report in verdicts:
        blocks += _section(report)
    return "\n\n".join(blocks)


def diffs_to_markdown(reports: Sequence[DiffReport]) -> str:
    """Return the answers, and tables of differences, for a comment on a pull request."""
    return "\n\n".join(block for report in reports for block in _difference(report))


def text_to_markdown(reports: Sequence[Any]) -> str:
    """Return the text as a block of code, for reports that have no tables of their own."""
    text = rendered(reports, "text")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}text\n{text}\n{fence}"


def inline(text: object) -> str:
    """Return text for a line or a cell; a dash for empty text."""
    return " ".join(map(_word, printable(text, LIMIT).split())) or "–"


# The start of code in a sentence: a call, an import, or a command of ours with its options.
_BEGINS = regex(r"(?<![\w.`])(?:(?:import|from) [A-Za-z_][\w., ]*; |[A-Za-z_][\w.]*\()")
_OPTION = r"--?[a-z][\w-]*(?:[= ][A-Z]\w*)?"
_COMMAND = regex(
    rf"(?<![\w.`-])(?:ckptool [a-z][a-z-]*(?: (?:{_OPTION}|'[^']*'|[A-Z]{{3,}}))*|{_OPTION})(?!\w)"
)
MAX_TRIES = 20  # starts of possible code that are tried, since a bracket may stay open
_OPEN, _CLOSED, _QUOTES = "([{", ")]}", "\"'"


def remedy(text: str) -> str:
    """Return a remedy for a cell; text that people paste is one piece of code."""
    shown, said = [], printable(text, LIMIT)
    while said:
        begin, end = _code_in(said)
        shown += [inline(said[:begin])] if said[:begin].strip() else []
        shown += [_pasted(said[begin:end])] if begin < end else []
        said = said[end:]
    return re.sub(r"` ([.,;:])(?= |$)", r"`\1", " ".join(shown)) or "–"


def _code_in(text: str) -> tuple[int, int]:
    """Return the start and the end of the first code in a text; the text's end twice without code.

    Text with a bracket that is never closed is no code.
    """
    begins = re.finditer(f"{_BEGINS.pattern}|{_COMMAND.pattern}", text)
    for match in islice(begins, MAX_TRIES):
        end = (
            match.end() if _COMMAND.fullmatch(match[0]) else _end_of_statements(text, match.start())
        )
        if end is not None:
            return match.start(), end
    return len(text), len(text)


def _end_of_statements(text: str, at: int) -> int | None:
    """Return the end of statements joined by semicolons; None where a bracket stays open."""
    end = _end_of_statement(text, at)
    while end is not None and text.startswith("; ", end) and _BEGINS.match(text, end + 2):
        end = _end_of_statement(text, end + 2)
    return end


def _end_of_statement(text: str, at: int) -> int | None:
    if (imported := re.compile(r"(?:import|from) [\w., ]*").match(text, at)) is not None:
        return imported.end()
    depth, quote = 0, ""
    for i in range(at, len(text)):
        char = text[i]
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSED:
            depth -= 1
            if depth <= 0 and not re.match(r"\.\w|\[|\(", text[i + 1 : i + 3]):
                return i + 1 if depth == 0 else None
        elif char == " " and depth == 0:
            return None
    return None


def _pasted(text: str) -> str:
    """Return our own code so that it reads back unchanged: cells unescape pipes, in code too."""
    if "`" in text or "\\|" in text:
        return code(text)
    return f"`{text}`".replace("|", r"\|")


def _word(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    core = word.rstrip(".,;:") or word
    return code(core) + word[len(core) :]


def code(text: str) -> str:
    """Return printable text as code, for a line or a cell."""
    return f"`{text.translate(_CODE)}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _overview(reports: Sequence[VerifyReport]) -> Iterator[str]:
    passed = sum(report.ok for report in reports)
    mark = MARKS[State.PASSED if passed == len(reports) else State.FAILED]
    yield f"## {mark} {passed} of {len(reports)} passed"
    yield table(("", "File", "Result"), map(_overview_row, reports))


def _overview_row(report: VerifyReport) -> tuple[str, str, str]:
    return (_marked(verdict(report)), inline(path_of(report)), counts(report))


def _marked(state: State) -> str:
    return f"{MARKS[state]} {STATES[state]}"


def _section(report: VerifyReport) -> Iterator[str]:
    yield f"### {_marked(verdict(report))}: {inline(path_of(report))}"
    yield _facts(report)
    if found := faults(report):
        shown = found[:MAX_ROWS]
        yield table(("", "Rule", "Where", "What", "What to do"), map(_finding_row, shown))
    if len(found) > MAX_ROWS:
        yield f"… and {len(found) - MAX_ROWS} more."
    if unchecked := in_state(report, State.NOT_CHECKED):
        yield _folded(
            State.NOT_CHECKED, len(unchecked), table(("Why", "Checks"), _reasons(unchecked))
        )
    if passed := in_state(report, State.PASSED):
        yield _folded(State.PASSED, len(passed), _named(passed))


def _facts(report: VerifyReport) -> str:
    kind = inline(file_kind(report.format)) if report.format else "not readable"
    required = f" Required: {inline(', '.join(report.required))}." if report.required else ""
    return f"{kind}, {size(report.size_bytes)}.{required} {counts(report).capitalize()}."


def _finding_row(finding: Finding) -> tuple[str, ...]:
    return (
        f"{SEVERITY_MARKS[finding.severity]} {finding.severity}",
        inline(finding.rule),
        inline(finding.address),
        inline(finding.message),
        remedy(finding.remedy or ""),
    )


def _reasons(unchecked: list[CheckResult]) -> Iterator[tuple[str, str]]:
    """Yield a row for each reason, with the checks that were not made for it."""
    for reason in dict.fromkeys(check.reason for check in unchecked):
        yield inline(reason), _named([check for check in unchecked if check.reason == reason])


def _named(checks: list[CheckResult]) -> str:
    return ", ".join(inline(named(check)) for check in checks)


def _folded(state: State, number: int, content: str) -> str:
    summary = f"{MARKS[state]} {number} {STATES[state]}"
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


# ------------------------------------------------------------------------------------- differences


def _difference(report: DiffReport) -> Iterator[str]:
    word = "equal" if report.equal else "different"
    yield f"### {word}: {_name(report.a)} and {_name(report.b)}"
    said = [escaped(line) for line in answer_lines(report)]
    said += [f"not compared: {escaped(remark)}" for remark in report.summary.not_compared]
    said += [f"fits nothing: {_name(option)}" for option in report.unused]
    yield "\n".join(f"- {line}" for line in said)
    for what, heads, rows, total in listed(report, ROWS):
        cells = ([_name(name or TOP), *map(escaped, rest)] for name, *rest in rows)
        yield table((what, *heads), cells)
        if total > ROWS:  # a comment may have at most 65,536 characters
            yield f"… and {total - ROWS:,} more."


def _name(text: str) -> str:
    return code(printable(text, 200))


def escaped(text: str) -> str:
    """Escape the characters of a text that have a meaning in Markdown, HTML or links.

    A colon has one before two slashes (a link), and before a word and a second colon (an emoji).
    """
    meaning = r"([\\`*_{}\[\]<>|#~!@&]|:(?=//|[\w+-]+:)|(?<=[wW]{3})\.)"
    return re.sub(meaning, r"\\\1", text)

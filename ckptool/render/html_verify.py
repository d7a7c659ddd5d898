"""The verdicts of ``ckptool verify`` as HTML: checks by family, findings, and every check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckptool.render.html_charts import shares
from ckptool.render.html_document import document, folding, page_as_html, shown, table
from ckptool.render.states import (
    NOUNS,
    counts,
    faults,
    findings_by_check,
    named,
    path_of,
    remedy,
    sentence,
    verdict,
    verdicts_of,
)
from ckptool.render.verify_text import certificate, proven, required
from ckptool.reports.base import Severity
from ckptool.reports.rules import FAMILIES
from ckptool.reports.verify import CheckResult, ChoiceReport, State, VerifyReport

# What a check found -> class of the bar, class of the word, and the word.
KINDS: Mapping[State | Severity, tuple[str, str, str]] = {
    State.PASSED: ("passed", "good", "passed"),
    Severity.ERROR: ("failed", "error", "failed"),
    Severity.WARNING: ("warned", "warning", "warning"),
    Severity.INFO: ("noted", "info", "note"),
    State.NOT_CHECKED: ("unchecked", "quiet", "not checked"),
}


def verdicts_to_html(reports: Sequence[VerifyReport | ChoiceReport]) -> str:
    """Return one document with all verdicts."""
    verdicts = verdicts_of(reports)
    passed = sum(report.ok for report in verdicts)
    title = f"{passed} of {len(verdicts)} passed"
    chosen = (_choice(report) for report in reports if isinstance(report, ChoiceReport))
    body = (line for report in verdicts for line in _article(report))
    return document(title, (*chosen, *body))


def _choice(report: ChoiceReport) -> str:
    found = f'<span class="name">{shown(report.path)}</span>' if report.path else "none passes"
    return f"<p>{found}: {shown(report.why)}</p>"


def _article(report: VerifyReport) -> Iterator[str]:
    state = verdict(report)
    kind = "good" if report.ok else "error"
    yield f'<article><h1><span class="{kind}">{state}</span> '
    yield f'<span class="name">{shown(path_of(report))}</span></h1>'
    yield f"<p>{shown(counts(report))}</p>"
    yield from page_as_html(required(report))
    yield from page_as_html(certificate(report.resume))
    yield from page_as_html(proven(report.proof))
    if rows := _families(report):
        yield from shares(rows)
    if report.findings:
        yield from folding("Findings", _findings(report))
    yield from folding("All checks", _checks(report), is_open=False)
    yield "</article>"


def _families(report: VerifyReport) -> list[tuple[str, list[tuple[str, str, int]]]]:
    rows = []
    for prefix, name in FAMILIES.items():
        found = [_found(check) for check in report.checks if check.rule.startswith(prefix)]
        if found:
            parts = [(bar, word, found.count(each)) for each, (bar, _, word) in KINDS.items()]
            rows.append((name, parts))
    return rows


def _found(check: CheckResult) -> State | Severity:
    """Return the state of a check; of one that found something, how severe that is."""
    return Severity(check.severity) if check.state == State.FAILED else State(check.state)


def _findings(report: VerifyReport) -> Iterator[str]:
    ordered = sorted(faults(report), key=lambda found: list(Severity).index(found.severity))
    rows = (
        (
            _marked(f"{found.rule} {NOUNS[found.severity]}", KINDS[found.severity][1]),
            shown(sentence(found)),
            shown(remedy(found)),
        )
        for found in ordered
    )
    yield from table(("rule", "finding", "what to do"), rows)


def _checks(report: VerifyReport) -> Iterator[str]:
    rows = (
        (
            shown(named(check)),
            _marked(KINDS[_found(check)][2], KINDS[_found(check)][1]),
            shown(check.reason),
        )
        for check, _ in findings_by_check(report)
    )
    yield from table(("rule", "state", "why not"), rows)


def _marked(text: str, kind: str) -> str:
    return f'<span class="{kind} state">{shown(text)}</span>'

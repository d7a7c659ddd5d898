"""Words that every format uses for a verification: three states, counts and findings.

Passed, failed and not checked are three states. A check that was not made is never shown as passed
and never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckptool.render.text import plural, printable
from ckptool.reports.base import Finding, Severity
from ckptool.reports.requirements import REQUIREMENTS
from ckptool.reports.verify import COUNTING, CheckResult, ChoiceReport, State, VerifyReport

LIMIT = 4096  # characters; programs look files up by these paths, so they are not cut earlier

# Rule -> rules that tell the same fault of the same tensor, and more of it.
_TOLD_BY = {"CK303": ("CK301", "CK302")}
# The word for each state, the most interesting first.
STATES: Mapping[State, str] = {state: state.replace("-", " ") for state in State}
NOUNS: Mapping[Severity, str] = dict(zip(Severity, ("error", "warning", "note"), strict=True))


def verdicts_of(reports: Sequence[VerifyReport | ChoiceReport]) -> list[VerifyReport]:
    """Return the verdicts; for a choice, those that led to it."""
    return [
        verdict
        for report in reports
        for verdict in (report.reports if isinstance(report, ChoiceReport) else (report,))
    ]


def verdict(report: VerifyReport) -> State:
    """Return the state of a whole file."""
    return State.PASSED if report.ok else State.FAILED


def named(check: CheckResult) -> str:
    """Return ``CK401 ema-absent``; not the title, which names a fault that a passed check lacks."""
    return f"{check.rule} {check.name}"


def in_state(report: VerifyReport, state: State) -> list[CheckResult]:
    """Return the checks in one of the states, in the order of the table."""
    return [check for check in report.checks if check.state == state]


def found_by_severity(findings: Sequence[Finding]) -> list[str]:
    """Return ``["1 error", "2 warnings"]``."""
    severities = [finding.severity for finding in findings]
    return [
        plural(severities.count(severity), noun)
        for severity, noun in NOUNS.items()
        if severity in severities
    ]


def faults(report: VerifyReport) -> list[Finding]:
    """Return the findings as they are shown and counted: each fault once."""
    return [*merged(told_once(report))]


def told_once(report: VerifyReport) -> list[Finding]:
    """Return the findings, without those that another one tells too."""
    found = {(each.rule, each.address) for each in report.findings}
    return [
        each
        for each in report.findings
        if not any((rule, each.address) in found for rule in _TOLD_BY.get(each.rule, ()))
    ]


def merged(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings; of those that differ only in the rule, the first names the others."""
    alike: dict[tuple[str, str, str, str | None], list[Finding]] = {}
    for found in findings:
        fault = (found.severity, found.address, found.message, found.remedy)
        alike.setdefault(fault, []).append(found)
    for first, *others in alike.values():
        more = f" (also {', '.join(other.rule for other in others)})" if others else ""
        yield replace(first, message=first.message + more)


def counts(report: VerifyReport) -> str:
    """Return ``1 error, 2 warnings, 40 ok; 21 not checked``.

    A check that found only a note is no failed one.
    """
    told = [*found_by_severity(faults(report)), f"{len(in_state(report, State.PASSED))} ok"]
    unchecked = len(in_state(report, State.NOT_CHECKED))
    return ", ".join(told) + (f"; {unchecked} not checked" if unchecked else "")


def findings_by_check(report: VerifyReport) -> Iterator[tuple[CheckResult, list[Finding]]]:
    """Yield every check with its findings."""
    found: dict[str, list[Finding]] = {}
    for finding in report.findings:
        found.setdefault(finding.rule, []).append(finding)
    return ((check, found.get(check.rule, [])) for check in report.checks)


def counting(report: VerifyReport, findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings for which the file fails."""
    return [finding for finding in findings if finding.severity in COUNTING[report.strict]]


def answers(report: VerifyReport) -> Iterator[tuple[str, str, bool]]:
    """Yield a title, an answer, and whether it is yes, for each requirement but a resume.

    Of that, and of the provenance, the report says more. Of a file that cannot be opened nothing is
    known: what it is refused for counts for all requirements.
    """
    errors = [found for found in faults(report) if found.severity == Severity.ERROR]
    listed = {check.rule for check in report.checks}
    for name in report.required:
        rules, met, _ = REQUIREMENTS[name]
        if met:
            because = [e for e in errors if report.format is None or e.rule in rules]
            ignored = ", ".join(rule for rule in rules if rule not in listed)
            yes = f"yes, apart from {ignored}, to be ignored" if ignored else f"yes, {met}"
            answer = because_of(len(because)) if because else yes
            yield _TITLES.get(name, name.capitalize()), answer, not because


_TITLES = {"ema": "EMA", "weights-only": "weights_only"}


def because_of(errors: int) -> str:
    """Return the answer to a requirement that is not met; the errors are shown elsewhere."""
    return f"no, because of {plural(errors, 'error')}"


def path_of(report: VerifyReport) -> str:
    """Return the file, and the part of it, as the user named them."""
    part = "" if report.address is None else f"#{report.address}"
    return printable(f"{report.path}{part}", LIMIT)


def sentence(finding: Finding) -> str:
    """Return key path and message of a finding in one line."""
    where = f"{printable(finding.address)}: " if finding.address else ""
    return f"{where}{printable(finding.message, LIMIT)}"


def remedy(finding: Finding) -> str:
    """Return the remedy of a finding; it may be empty."""
    return printable(finding.remedy or "", LIMIT)

"""From checks to verdicts: three states a rule, and a crash is never a pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ckptool.checks.base import Check, NotChecked, Subject
from ckptool.errors import CkptError, UnsupportedError
from ckptool.reports import Finding
from ckptool.rules import BY_ID, BYTES, RULES, VALUES, Rule, finding
from ckptool.verify_reports import CheckResult

PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not-checked"


class Selection(NamedTuple):
    """What was asked for."""

    listed: tuple[str, ...]  # rules in the report, in the order of the table
    active: frozenset[str]  # rules that are to be decided
    required: frozenset[str]  # rules that must pass
    reads: frozenset[str]  # what may be read in full: bytes, values
    strict: bool = False


class Verdict(NamedTuple):
    """What the rules say together."""

    ok: bool
    findings: tuple[Finding, ...]
    checks: tuple[CheckResult, ...]


def run_checks(checks: Iterable[Check], subject: Subject, chosen: Selection) -> Verdict:
    """Ask every check that decides an active rule."""
    findings: list[Finding] = []
    skipped: dict[str, NotChecked] = {}
    decided: set[str] = set()
    for check in checks:
        wanted = chosen.active.intersection(check.rules)
        if wanted:
            decided |= wanted
            for said in _ask(check, subject):
                if isinstance(said, Finding):
                    findings.append(said)
                else:
                    skipped.setdefault(said.rule, said)
    for rule in chosen.active - decided:
        skipped[rule] = NotChecked(rule, "nothing decides this rule")
    for rule in chosen.listed:
        if rule not in chosen.active:
            skipped[rule] = NotChecked(rule, _not_asked(BY_ID[rule], chosen))
    return judge(findings, skipped, chosen)


def _ask(check: Check, subject: Subject) -> list[Finding | NotChecked]:
    """The check's verdicts; an error in it is one of them."""
    said: list[Finding | NotChecked] = []
    try:
        lacking = next(filter(None, (need(subject) for need in check.needs)), None)
        if lacking:
            return [NotChecked(rule, lacking, is_absent=True) for rule in check.rules]
        for verdict in check.run(subject):
            said.append(verdict)  # noqa: PERF402 - what was said before an error stays said
    except UnsupportedError as error:
        said += [NotChecked(rule, error.message) for rule in check.rules]
    except CkptError as error:
        said += _broken(check, error.message, error.address or "")
    except OSError as error:  # a disk or a network that does not answer
        said += _broken(check, f"the file cannot be read: {error.strerror or error}", "")
    except Exception as error:  # noqa: BLE001 - a check that crashes must not look like a pass
        said += _broken(check, f"a bug in ckptool: {type(error).__name__}: {error}", "")
    return said


def _broken(check: Check, message: str, address: str) -> list[Finding | NotChecked]:
    first, *others = check.rules
    failed = finding(first, address, f"the check broke off: {message}")
    rest = [NotChecked(rule, f"the check broke off: {message}") for rule in others]
    return [failed._replace(severity="error", remedy="ckptool inspect may show more"), *rest]


def _not_asked(rule: Rule, chosen: Selection) -> str:
    if rule.cost in {BYTES, VALUES} and rule.cost not in chosen.reads:
        return f"reads all {rule.cost}: --{rule.cost}"
    return "only when asked for: --select its id, or --require what needs it"


# --------------------------------------------------------------------------------------- judgement


def judge(
    findings: Iterable[Finding], skipped: Mapping[str, NotChecked], chosen: Selection
) -> Verdict:
    """The verdict: what was required and did not pass is an error."""
    kept = [_raised(f, chosen) for f in findings if f.rule in chosen.active]
    failed = {f.rule for f in kept}
    unmet = [
        _unmet(BY_ID[rule], skipped[rule])
        for rule in chosen.listed
        if rule in chosen.required and rule in skipped and rule not in failed
        if not skipped[rule].is_absent
    ]
    order = {"error": 0, "warning": 1, "info": 2}
    everything = sorted([*kept, *unmet], key=lambda f: (order[f.severity], f.rule))
    counts = {"error", "warning"} if chosen.strict else {"error"}
    return Verdict(
        ok=not any(f.severity in counts for f in everything),
        findings=tuple(everything),
        checks=tuple(_result(BY_ID[rule], failed, skipped, chosen) for rule in chosen.listed),
    )


def _raised(found: Finding, chosen: Selection) -> Finding:
    return found._replace(severity="error") if found.rule in chosen.required else found


def _unmet(rule: Rule, why: NotChecked) -> Finding:
    """Not checked is not passed."""
    return Finding(rule.id, "error", "", f"required, but not checked: {why.reason}", None)


def _result(
    rule: Rule, failed: Collection[str], skipped: Mapping[str, NotChecked], chosen: Selection
) -> CheckResult:
    severity = "error" if rule.id in chosen.required else rule.severity
    if rule.id in failed:
        return CheckResult(rule.id, rule.meaning, FAILED, "", severity, rule.name)
    reason = skipped[rule.id].reason if rule.id in skipped else ""
    state = NOT_CHECKED if rule.id in skipped else PASSED
    return CheckResult(rule.id, rule.meaning, state, reason, severity, rule.name)


# --------------------------------------------------------------------------------------- selection

# What ``--require`` names, and the rules that must pass then. A rule about something that the file
# does not have cannot fail; whether it has to be there is a rule of its own.
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "intact": ("CK101", "CK102", "CK103", "CK104", "CK105", "CK106", "CK107"),
    "safe": ("CK201", "CK202", "CK203"),
    "finite": ("CK301", "CK302", "CK303"),
    "ema": ("CK303", "CK401", "CK402", "CK403", "CK404", "CK405", "CK411"),
    "resume": (
        "CK303", "CK501", "CK502", "CK504", "CK505", "CK507", "CK510", "CK511", "CK512", "CK513",
        "CK514", "CK515", "CK517", "CK519", "CK520", "CK521",
    ),
    "loads": ("CK601", "CK602", "CK603", "CK604"),
    "provenance": ("CK701", "CK702"),
}  # fmt: skip


def select(
    *,
    require: Iterable[str] = (),
    selected: Iterable[str] = (),
    ignored: Iterable[str] = (),
    strict: bool = False,
    bytes_: bool | None = None,
    values: bool | None = None,
) -> Selection:
    """The rules that are meant; ids and prefixes are known to be right.

    What is required, or selected by its whole id, is read for unless that was refused.
    """
    prefixes, dropped = tuple(selected), tuple(ignored)
    required = {rule for name in require for rule in REQUIREMENTS[name]}
    listed = tuple(
        rule.id
        for rule in RULES
        if (not prefixes or rule.id.startswith(prefixes) or rule.id in required)
        and not (dropped and rule.id.startswith(dropped))
    )
    asked = required | {rule.id for rule in RULES if rule.id in prefixes}
    costs = {BY_ID[rule].cost for rule in listed if rule in asked}
    wishes = {BYTES: bytes_, VALUES: values}
    reads = {cost for cost, wish in wishes.items() if wish or (wish is None and cost in costs)}
    active = {
        rule
        for rule in listed
        if (BY_ID[rule].default or rule in asked)
        and (BY_ID[rule].cost not in wishes or BY_ID[rule].cost in reads)
    }
    return Selection(
        listed, frozenset(active), frozenset(required & set(listed)), frozenset(reads), strict
    )

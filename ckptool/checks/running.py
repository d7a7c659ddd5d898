"""The runner of checks, which turns their answers into a verdict.

Each rule has one of three states, and a check that crashes never passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ckptool.checks.base import Check, NotChecked, Subject
from ckptool.errors import CkptError, RepetitionError, UnsupportedError
from ckptool.records import NamedTuple
from ckptool.reports.base import Finding, Severity
from ckptool.reports.requirements import REQUIREMENTS
from ckptool.reports.rules import BY_ID, BYTES, RULES, VALUES, Rule, finding
from ckptool.reports.verify import COUNTING, CheckResult, State


class Selection(NamedTuple):
    """The requested rules and reads."""

    listed: tuple[str, ...]  # rules in the report, in the order of the table
    active: frozenset[str]  # rules to decide
    required: frozenset[str]  # rules that must pass
    reads: frozenset[str]  # the kinds of data that may be read in full: bytes, values
    strict: bool = False


class Verdict(NamedTuple):
    """The combined result of all rules."""

    ok: bool
    findings: tuple[Finding, ...]
    checks: tuple[CheckResult, ...]


def run_checks(checks: Iterable[Check], subject: Subject, chosen: Selection) -> Verdict:
    """Ask each check that decides an active rule, and return the verdict."""
    chosen = _of_a_part(chosen) if subject.part is not None else chosen
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
            is_whole = subject.part is not None and not rule.startswith(OF_A_PART)
            skipped[rule] = NotChecked(rule, WHOLE if is_whole else _not_asked(BY_ID[rule], chosen))
    return judge(findings, skipped, chosen)


# Families of rules that can be asked of a part of a checkpoint. Whether a file is intact and safe
# is asked of the whole file; values, loading and provenance are asked of the part.
OF_A_PART = ("CK1", "CK2", "CK3", "CK6", "CK7")
WHOLE = "asked of a whole checkpoint, not of a part"


def _of_a_part(chosen: Selection) -> Selection:
    """Return a selection with only those rules active that can be asked of a part."""
    active = frozenset(rule for rule in chosen.active if rule.startswith(OF_A_PART))
    return chosen._replace(active=active)


def _ask(check: Check, subject: Subject) -> list[Finding | NotChecked]:
    """Return the check's verdicts; an error in the check is a verdict too."""
    said: list[Finding | NotChecked] = []
    try:
        lacking = next(filter(None, (need(subject) for need in check.needs)), None)
        if lacking:
            return [NotChecked(rule, lacking, is_absent=True) for rule in check.rules]
        for verdict in check.run(subject):
            said.append(verdict)  # noqa: PERF402 - verdicts before an error are kept
    except RepetitionError as error:  # else a file could evade the check
        said += _broken(check, error.message, "")
    except UnsupportedError as error:
        said += [NotChecked(rule, error.message) for rule in check.rules]
    except CkptError as error:
        said += _broken(check, error.message, error.address or "")
    except OSError as error:  # a disk or network that does not answer
        said += _broken(check, f"the file cannot be read: {error.strerror or error}", "")
    except Exception as error:  # noqa: BLE001 - a check that crashes must not look like a pass
        said += _broken(check, f"a bug in ckptool: {type(error).__name__}: {error}", "")
    return said


def _broken(check: Check, message: str, address: str) -> list[Finding | NotChecked]:
    first, *others = check.rules
    failed = finding(first, address, f"the check broke off: {message}")
    rest = [NotChecked(rule, f"the check broke off: {message}") for rule in others]
    return [replace(failed, severity=Severity.ERROR, remedy="ckptool inspect may show more"), *rest]


def _not_asked(rule: Rule, chosen: Selection) -> str:
    if rule.cost in {BYTES, VALUES} and rule.cost not in chosen.reads:
        return f"reads all {rule.cost}: --{rule.cost}"
    return "off by default: ask with --rules or --require"


# --------------------------------------------------------------------------------------- judgement


def judge(
    findings: Iterable[Finding], skipped: Mapping[str, NotChecked], chosen: Selection
) -> Verdict:
    """Return the verdict; a required rule that did not pass is an error."""
    kept = [
        replace(found, severity=Severity.ERROR) if found.rule in chosen.required else found
        for found in findings
        if found.rule in chosen.active
    ]
    failed = {f.rule for f in kept}
    unmet = [
        _unmet(BY_ID[rule], skipped[rule])
        for rule in chosen.listed
        if rule in chosen.required and rule in skipped and rule not in failed
        if not (skipped[rule].is_absent or skipped[rule].is_told)
    ]
    order = list(Severity)
    known = sorted(kept, key=lambda f: (order.index(f.severity), f.rule))
    errors = sum(f.severity is Severity.ERROR for f in known)
    everything = [*known[:errors], *unmet, *known[errors:]]  # the cause, then what it kept unasked
    counts = COUNTING[chosen.strict]
    return Verdict(
        ok=not any(f.severity in counts for f in everything),
        findings=tuple(everything),
        checks=tuple(_result(BY_ID[rule], failed, skipped, chosen) for rule in chosen.listed),
    )


def _unmet(rule: Rule, why: NotChecked) -> Finding:
    """Return the error for a required rule that was not checked: that is no pass."""
    return Finding(rule.id, Severity.ERROR, "", f"required, but not checked: {why.reason}", None)


def _result(
    rule: Rule, failed: Collection[str], skipped: Mapping[str, NotChecked], chosen: Selection
) -> CheckResult:
    severity = Severity.ERROR if rule.id in chosen.required else rule.severity
    if rule.id in failed:
        return CheckResult(rule.id, rule.meaning, State.FAILED, "", severity, rule.name)
    reason = skipped[rule.id].reason if rule.id in skipped else ""
    state = State.NOT_CHECKED if rule.id in skipped else State.PASSED
    return CheckResult(rule.id, rule.meaning, state, reason, severity, rule.name)


# --------------------------------------------------------------------------------------- selection


def rules_asked_for(require: Iterable[str], selected: Iterable[str]) -> frozenset[str]:
    """Return the rules that requirements and a selection by id or family ask for."""
    prefixes = tuple(selected)
    chosen = {rule.id for rule in RULES if prefixes and rule.id.startswith(prefixes)}
    known = REQUIREMENTS.keys() & set(require)
    return frozenset(chosen.union(*(REQUIREMENTS[name].rules for name in known)))


def spare(ignored: Iterable[str], asked: Collection[str]) -> list[str]:
    """Return rules to ignore by their ids, without those asked for; unknown names as they are."""
    families = {text: [rule.id for rule in RULES if rule.id.startswith(text)] for text in ignored}
    return [
        rule for text, found in families.items() for rule in found or [text] if rule not in asked
    ]


def select(
    *,
    require: Iterable[str] = (),
    selected: Iterable[str] = (),
    ignored: Iterable[str] = (),
    strict: bool = False,
    bytes_: bool | None = None,
    values: bool | None = None,
) -> Selection:
    """Return the selection of rules; ids and prefixes must have been validated.

    Rules that are required, or selected by their whole id, turn on the reads that they need, unless
    ``bytes_`` or ``values`` is False.
    """
    prefixes, dropped = tuple(selected), tuple(ignored)
    names = tuple(require)
    required = {rule for name in names for rule in REQUIREMENTS[name].rules}
    advised = {rule for name in names for rule in REQUIREMENTS[name].advice}
    listed = tuple(
        rule.id
        for rule in RULES
        if (not prefixes or rule.id.startswith(prefixes) or rule.id in required | advised)
        and not (dropped and rule.id.startswith(dropped))
    )
    asked = required | advised | {rule.id for rule in RULES if rule.id in prefixes}
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

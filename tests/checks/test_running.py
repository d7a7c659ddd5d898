"""Three states a rule: what is not checked is not passed, and what crashes fails."""

from __future__ import annotations

import pytest

from ckptool.checks import running
from ckptool.checks.base import Check, NotChecked, Subject
from ckptool.checks.running import judge, run_checks, select
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.reports.requirements import REQUIREMENTS, Requirement
from ckptool.reports.rules import BY_ID, RULES, finding


@pytest.fixture
def subject(sound):
    with open_checkpoint(sound) as checkpoint:
        yield Subject(checkpoint)


def passes(_subject):
    return ()


def fails(_subject):
    yield finding("CK404", "ema", "a fault")


def skips(_subject):
    yield NotChecked("CK404", "no time")


def finds_nothing_there(_subject):
    yield NotChecked("CK404", "none", is_absent=True)


def breaks(_subject):
    yield finding("CK404", "ema", "a fault")
    raise ValueError("a mistake of ours")


def breaks_at_once(_subject):
    raise ZeroDivisionError


def is_damaged(_subject):
    raise DamagedError("the file ends", address="ema")


def cannot(_subject):
    raise UnsupportedError("no arithmetic")


def verdict(subject, run, *rules, **options):
    chosen = select(selected=rules or ("CK404",), **options)
    return run_checks([Check(rules or ("CK404",), run)], subject, chosen)


STATES = {
    passes: ("passed", True),
    fails: ("failed", True),  # a warning
    skips: ("not-checked", True),
    finds_nothing_there: ("not-checked", True),
    breaks: ("failed", False),
    breaks_at_once: ("failed", False),
    is_damaged: ("failed", False),
    cannot: ("not-checked", True),
}


@pytest.mark.parametrize("run", STATES)
def test_states(run, subject):
    result = verdict(subject, run)
    assert (result.checks[0].state, result.ok) == STATES[run]
    assert all(check.reason for check in result.checks if check.state == "not-checked")


@pytest.mark.parametrize("run", STATES)
def test_what_is_required_must_have_passed(run, subject, monkeypatch):
    monkeypatch.setattr(running, "REQUIREMENTS", {"it": Requirement(("CK404",))})
    chosen = select(require=["it"], selected=["CK404"])
    result = run_checks([Check(("CK404",), run)], subject, chosen)
    assert result.ok == (run in {passes, finds_nothing_there})
    assert all(found.severity == "error" for found in result.findings)


def test_strict_lets_warnings_fail(subject):
    assert verdict(subject, fails).ok
    assert not verdict(subject, fails, strict=True).ok


def test_a_check_that_breaks_leaves_its_other_rules_unchecked(subject):
    result = verdict(subject, breaks_at_once, "CK404", "CK405")
    assert [check.state for check in result.checks] == ["failed", "not-checked"]
    assert "ZeroDivisionError" in result.findings[0].message


def test_a_rule_that_nothing_decides_is_not_passed(subject):
    result = run_checks([], subject, select(selected=["CK404"]))
    assert [check.state for check in result.checks] == ["not-checked"]


def test_what_a_check_needs_comes_first(subject):
    check = Check(("CK404",), breaks_at_once, (lambda _subject: "nothing to look at",))
    result = run_checks([check], subject, select(selected=["CK404"]))
    assert (result.checks[0].state, result.checks[0].reason) == (
        "not-checked", "nothing to look at",
    )  # fmt: skip


# --------------------------------------------------------------------------------------- selection


def test_by_default_every_rule_is_listed_and_only_cheap_ones_run():
    chosen = select()
    assert chosen.listed == tuple(rule.id for rule in RULES)
    assert {BY_ID[rule].cost for rule in chosen.active} == {"tree"}
    assert all(BY_ID[rule].default for rule in chosen.active)


def test_families_and_ids_are_selected_and_ignored():
    chosen = select(selected=["CK4", "CK103"], ignored=["CK40"])
    assert chosen.listed[0] == "CK103"
    assert {rule[:4] for rule in chosen.listed[1:]} == {"CK41", "CK42"}
    assert "CK103" in chosen.active  # named in full, so its bytes are read
    assert "CK412" not in chosen.active  # of a family: values are not read for it


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_what_is_required_runs(name):
    chosen = select(require=[name])
    assert chosen.required == set(REQUIREMENTS[name].rules) <= chosen.active


def test_what_is_required_and_may_not_be_read_fails(sound, ckptool):
    output = ckptool("verify", sound, "--require", "finite", "--no-values", "--json")
    assert output.exit_code == 1
    message = next(f["message"] for f in output.json["findings"] if f["rule"] == "CK301")
    assert message.startswith("required, but not checked")


def test_a_disk_that_does_not_answer_is_no_bug_of_ours(subject):
    def run(_subject):
        raise OSError(5, "Input/output error")
        yield

    verdict = running.run_checks([Check(("CK103",), run)], subject, running.select(bytes_=True))
    (found,) = [f for f in verdict.findings if f.rule == "CK103"]
    assert found.message == "the check broke off: the file cannot be read: Input/output error"


@pytest.mark.parametrize(
    ("rule", "requirement"),
    [("CK108", "intact"), ("CK112", "intact"), ("CK122", "intact"), ("CK122", "loads")],
)
def test_a_requirement_has_the_rules_without_which_it_would_not_hold(rule, requirement):
    chosen = select(require=[requirement])
    found = judge([finding(rule, "", "a fault")], {}, chosen)
    assert (found.ok, found.findings[0].severity) == (False, "error")


def test_what_was_found_is_told_before_what_could_not_be_checked():
    """``--latest-valid`` gives the first error as the reason."""
    chosen = select(require=("intact",))
    cut = finding("CK104", "", "a shard is missing")
    note = finding("CK202", "", "names")
    skipped = {rule: NotChecked(rule, "not open") for rule in REQUIREMENTS["intact"].rules}
    told = judge([note, cut], skipped, chosen).findings
    rest = [rule for rule in REQUIREMENTS["intact"].rules if rule != "CK104"]
    assert [each.rule for each in told] == ["CK104", *rest, "CK202"]

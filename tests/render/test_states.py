"""The words of a verification: three states, counts, where and what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptool.commands.verify import Request, verify_file
from ckptool.render import states
from ckptool.reports.verify import State
from helpers.paths import FIXTURES


@pytest.fixture(scope="module")
def report():
    """A verdict with failures, with what passed and what was not checked."""
    return verify_file(FIXTURES / "hostile" / "benign" / "legacy.pt", Request())


def test_every_check_is_in_one_state(report):
    parts = [states.in_state(report, state) for state in State]
    assert sum(map(len, parts)) == len(report.checks)
    assert states.STATES[State.NOT_CHECKED] == "not checked"


def test_the_counts_are_those_of_the_report(report):
    said = states.counts(report)
    assert f"{len(states.in_state(report, State.PASSED))} ok" in said
    assert f"; {len(states.in_state(report, State.NOT_CHECKED))} not checked" in said
    assert "failed" not in said  # under "passed", a failed check would be a contradiction
    checked = [check for check in report.checks if check.state != State.NOT_CHECKED]
    assert "not checked" not in states.counts(replace(report, checks=checked))


def test_findings_are_with_their_checks(report):
    found = [finding for _, findings in states.findings_by_check(report) for finding in findings]
    assert sorted(map(id, found)) == sorted(map(id, report.findings))


def test_a_verdict_is_passed_or_failed(report):
    assert states.verdict(report) == (State.PASSED if report.ok else State.FAILED)
    assert states.verdicts_of([report, report]) == [report, report]
    assert states.path_of(report).endswith("legacy.pt")

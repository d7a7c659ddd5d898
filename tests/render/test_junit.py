"""JUnit XML: read back by the standard library, held against the form that Jenkins publishes."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given

from ckptool.render.junit import verdicts_to_junit
from ckptool.render.text import printable
from helpers import verdicts
from helpers.published import assert_junit
from helpers.thinned import examples


def suites(text: str) -> list[ET.Element]:
    return list(ET.fromstring(text.encode()))


def outcome(case: ET.Element) -> str:
    return case[0].tag if len(case) else "passed"


@given(verdicts.report_lists())
def test_whatever_the_names_it_is_xml_with_a_suite_a_file(reports):
    found = suites(verdicts_to_junit(reports))
    assert [suite.get("name") for suite in found] == [printable(r.path) for r in reports]
    for suite, report in zip(found, reports, strict=True):
        assert [case.get("name") for case in suite] == [
            printable(f"{check.rule} {check.name}") for check in report.checks
        ]


@pytest.mark.slow
@given(verdicts.report_lists())
@examples(20)
def test_it_is_what_jenkins_takes(reports):
    assert_junit(verdicts_to_junit(reports))


@pytest.mark.parametrize(
    "report", [verdicts.good(), verdicts.bad(), verdicts.unreadable(), verdicts.unmet()]
)
def test_the_counts_are_those_of_the_cases(report):
    (suite,) = suites(verdicts_to_junit([report]))
    outcomes = [outcome(case) for case in suite]
    assert suite.get("tests") == str(len(outcomes))
    assert suite.get("failures") == str(outcomes.count("failure"))
    assert suite.get("skipped") == str(outcomes.count("skipped"))


def test_a_failure_tells_where_what_and_what_to_do():
    (suite,) = suites(verdicts_to_junit([verdicts.bad()]))
    (failure,) = suite[1]
    assert failure.attrib == {
        "type": "error",
        "message": "state_dict/a.weight: 64 bytes are missing",
    }
    assert failure.text == "error: state_dict/a.weight: 64 bytes are missing\nget the file again"


def test_a_check_that_was_not_made_says_why():
    (suite,) = suites(verdicts_to_junit([verdicts.good()]))
    assert [outcome(case) for case in suite] == ["passed", "skipped"]
    assert suite[1][0].get("message") == verdicts.BYTES


def test_what_was_required_and_not_checked_is_a_failure():
    (suite,) = suites(verdicts_to_junit([verdicts.unmet()]))
    assert [outcome(case) for case in suite] == ["failure"]
    assert suite[0][0].get("type") == "not-checked"
    assert suite[0][0].get("message") == f"required, but not checked: {verdicts.BYTES}"


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_is_what_the_file_fails_for(strict):
    (suite,) = suites(verdicts_to_junit([replace(verdicts.bad(), strict=strict)]))
    warning = "failure" if strict else "system-out"
    outcomes = [outcome(case) for case in suite]
    assert outcomes == ["passed", "failure", "skipped", warning, "system-out"]
    assert suite[3][0].text == "warning: ema: the averages are the model's own values"
    assert suite[4][0].text == "info: ema: 1 of 4 weights has no average"


def test_all_findings_of_a_check_are_told():
    report = verdicts.bad()
    again = replace(report.findings[0], address="state_dict/b.weight")
    (suite,) = suites(verdicts_to_junit([replace(report, findings=(*report.findings, again))]))
    assert suite.get("failures") == "1"
    assert [line.split(": 64")[0] for line in suite[1][0].text.splitlines()] == [
        "error: state_dict/a.weight", "get the file again",
        "error: state_dict/b.weight", "get the file again",
    ]  # fmt: skip

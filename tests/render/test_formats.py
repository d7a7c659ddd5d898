"""The table of formats: the three states in each, and that none of them invents or hides one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given

import verdicts
from ckptool.render.formats import FORMATS, rendered
from ckptool.reports import VerifyReport
from published import OURS, assert_ours

States = dict[str, str]  # rule -> passed, failed, not-checked


def states(reports: list[VerifyReport]) -> States:
    return {check.rule: check.state for report in reports for check in report.checks}


def in_json(text: str) -> States:
    return {check["rule"]: check["state"] for check in json.loads(text)["checks"]}


def in_markdown(text: str) -> States:
    """Rows are failures; the two folded parts are named by their state."""
    found = dict.fromkeys(re.findall(r"^\| \S+ \w+ \| `(CK\d+)`", text, re.MULTILINE), "failed")
    for summary, inside in re.findall(r"<summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL):
        state = re.sub(r"^\S+ \d+ ", "", summary).replace(" ", "-")
        found |= dict.fromkeys(re.findall(r"`(CK\d+)`", inside), state)
    return found


def in_log(text: str) -> States:
    lines = re.findall(r"^(passed|failed|not checked) +(CK\d+)", text, re.MULTILINE)
    return {rule: state.replace(" ", "-") for state, rule in lines}


def in_sarif(text: str) -> States:
    words = {"pass": "passed", "fail": "failed", "open": "not-checked"}
    (run,) = json.loads(text)["runs"]
    return {result["ruleId"]: words[result["kind"]] for result in run["results"]}


def in_junit(text: str) -> States:
    """What the file does not fail for is told in a case that did not fail."""
    words = {"failure": "failed", "skipped": "not-checked", "system-out": "failed"}
    cases = ET.fromstring(text.encode()).iter("testcase")
    return {
        case.get("name").split()[0]: words[case[0].tag] if len(case) else "passed" for case in cases
    }


READERS: dict[str, Callable[[str], States]] = {
    "json": in_json,
    "md": in_markdown,
    "github": in_log,
    "sarif": in_sarif,
    "junit": in_junit,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "report", [verdicts.good(), verdicts.bad(), verdicts.unreadable()], ids=lambda r: r.path
)
def test_passed_failed_and_not_checked_are_told_apart(name, report):
    assert READERS[name](rendered([report], name)) == states([report])


def test_code_scanning_tells_failures_alone():
    found = in_sarif(rendered([verdicts.bad()], "code-scanning"))
    assert Counter(found.values()) == {"failed": 3}


def test_every_format_is_read_here():
    assert {*READERS, "code-scanning"} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_why_something_was_not_checked_is_said_wherever_it_is_said_at_all(name):
    assert (verdicts.BYTES.split(":")[0] in rendered([verdicts.good()], name)) == (
        name != "code-scanning"
    )


@pytest.mark.parametrize("name", FORMATS)
@given(reports=verdicts.report_lists())
def test_the_text_can_be_written_anywhere_and_has_no_line_of_anybody_else(name, reports):
    """Without control characters, surrogates or invisible marks; lines end where we end them."""
    text = rendered(reports, name)
    text.encode()
    assert all(line.isprintable() or "️" in line for line in text.split("\n"))


@given(verdicts.report_lists())
def test_json_is_exact_and_what_its_schema_says(reports):
    document = json.loads(rendered(reports, "json"), parse_constant=pytest.fail)
    documents = document if isinstance(document, list) else [document]
    assert len(documents) == len(reports)
    for found, report in zip(documents, reports, strict=True):
        assert_ours(found)
        assert [one["message"] for one in found["findings"]] == [f.message for f in report.findings]
        assert found["path"] == report.path


def test_the_schema_knows_every_key_of_the_report():
    """A key that is added is added to the schema too."""
    schema = json.loads((OURS / "ckptool-verify-1.json").read_text())
    assert set(schema["properties"]) == {"schema", *VerifyReport._fields}
    for name, fields in (("finding", verdicts.FINDINGS[0]), ("check", verdicts.CHECKS[0])):
        assert set(schema["definitions"][name]["properties"]) == set(fields._fields)

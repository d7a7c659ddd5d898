"""SARIF: held against the schema of OASIS, and what GitHub's code scanning asks beyond it."""

from __future__ import annotations

import json
import os
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import given

from ckptool.render.sarif import to_code_scanning, to_sarif
from helpers import verdicts
from helpers.published import assert_sarif
from helpers.thinned import examples

BOTH = pytest.mark.parametrize("to_text", [to_sarif, to_code_scanning])


def results(text: str) -> list[dict]:
    (run,) = json.loads(text)["runs"]
    return run["results"]


def uri(result: dict) -> str:
    (location,) = result["locations"]
    return location["physicalLocation"]["artifactLocation"]["uri"]


@BOTH
@given(reports=verdicts.report_lists())
@examples(20)
def test_it_is_sarif_whatever_the_names(to_text, reports):
    assert_sarif(json.loads(to_text(reports)))


@BOTH
@given(reports=verdicts.report_lists())
def test_no_name_is_a_placeholder_or_a_link(to_text, reports):
    for result in results(to_text(reports)):
        said = result["message"]["text"].replace("{{", "").replace("}}", "")
        assert not set("{}") & set(said)
        assert "](" not in said


@given(verdicts.report_lists())
def test_there_is_a_result_a_finding_and_one_for_every_other_check(reports):
    kinds = [result["kind"] for result in results(to_sarif(reports))]
    checks = [check.state for report in reports for check in report.checks]
    assert kinds.count("fail") == sum(len(report.findings) for report in reports)
    assert kinds.count("pass") == checks.count("passed")
    assert kinds.count("open") == checks.count("not-checked")


@given(verdicts.report_lists())
def test_code_scanning_gets_failures_alone_each_with_a_line(reports):
    """It shows every result as an alert, and refuses files with a result that is nowhere."""
    found = results(to_code_scanning(reports))
    assert len(found) == sum(len(report.findings) for report in reports)
    for result in found:
        (location,) = result["locations"]
        assert location["physicalLocation"]["region"] == {"startLine": 1}


@pytest.mark.parametrize(
    "path", ["last.ckpt", "runs/a b.ckpt", "/tmp/ä#1.ckpt", "a:b%20.ckpt", "\udcff.ckpt"]
)
def test_the_uri_leads_back_to_the_file(path):
    split = urlsplit(uri(results(to_sarif([verdicts.bad(path)]))[0]))
    assert os.fsdecode(unquote_to_bytes(split.path)) == path
    assert split.scheme == ("file" if path.startswith("/") else "")


def test_a_result_names_rule_severity_place_and_remedy():
    result = next(r for r in results(to_sarif([verdicts.bad()])) if r["ruleId"] == "CK102")
    assert (result["kind"], result["level"]) == ("fail", "error")
    assert result["message"] == {
        "text": "state_dict/a.weight: 64 bytes are missing\nget the file again"
    }
    (place,) = result["locations"][0]["logicalLocations"]
    assert place == {"fullyQualifiedName": "state_dict/a.weight"}


def test_what_was_required_and_not_checked_is_a_failure():
    assert [result["kind"] for result in results(to_sarif([verdicts.unmet()]))] == ["fail"]


def test_rules_are_described_once_for_all_files():
    (run,) = json.loads(to_sarif([verdicts.bad(), verdicts.bad()]))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [check.rule for check in verdicts.CHECKS]
    assert rules[3] == {
        "id": "CK404",
        "name": "same",
        "shortDescription": {"text": "The averages are the model's own values."},
        "defaultConfiguration": {"level": "warning"},
    }

"""The table of formats: the three states in each, and that none of them invents or hides one."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
from hypothesis import given

from ckptool.render.outputs import FORMS, RENDERERS, TEXTS, outputs_of, rendered
from ckptool.reports.verify import VerifyReport
from helpers import verdicts
from helpers.published import OURS, assert_ours
from helpers.told import READERS, in_sarif, states

FORMATS = outputs_of("VerifyReport")[1:]  # but for text


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "report",
    [verdicts.good(), verdicts.bad(), verdicts.unreadable(), verdicts.unmet()],
    ids=lambda r: r.path,
)
def test_passed_failed_and_not_checked_are_told_apart(name, report):
    assert READERS[name](rendered([report], name)) == states([report])


def test_code_scanning_tells_failures_alone():
    found = in_sarif(rendered([verdicts.bad()], "code-scanning"))
    assert Counter(found.values()) == {"failed": 3}


def test_every_format_is_read_here_and_can_be_asked_for():
    assert {*READERS, "code-scanning"} == set(FORMATS)
    assert set(FORMS) == RENDERERS.keys() - TEXTS[1:]


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
    assert all(line.isprintable() for line in text.split("\n"))


@given(verdicts.report_lists())
def test_json_is_exact_and_what_its_schema_says(reports):
    document = json.loads(rendered(reports, "json"), parse_constant=pytest.fail)
    documents = document if isinstance(document, list) else [document]
    assert len(documents) == len(reports)
    for found, report in zip(documents, reports, strict=True):
        assert_ours(found)
        assert [one["message"] for one in found["findings"]] == [f.message for f in report.findings]
        assert found["path"] == report.path


def names_of(report) -> set[str]:
    return {field.name for field in dataclasses.fields(report)}


def test_the_schema_knows_every_key_of_the_report():
    """A key that is added is added to the schema too."""
    schema = json.loads((OURS / "ckptool-verify-1.json").read_text())
    assert set(schema["properties"]) == {"schema", *names_of(VerifyReport)}
    for name, fields in (("finding", verdicts.FINDINGS[0]), ("check", verdicts.CHECKS[0])):
        assert set(schema["definitions"][name]["properties"]) == names_of(fields)

"""The table of formats: the three states in each, and that none of them invents or hides one."""

from __future__ import annotations

import json
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given

import verdicts
from ckptool.cli.options import Format
from ckptool.render.formats import FORMATS, rendered
from ckptool.verify_reports import VerifyReport
from published import OURS, assert_ours
from told import READERS, in_sarif, states


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
    assert get_args(Format) == ("text", *FORMATS)


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


def test_the_schema_knows_every_key_of_the_report():
    """A key that is added is added to the schema too."""
    schema = json.loads((OURS / "ckptool-verify-1.json").read_text())
    assert set(schema["properties"]) == {"schema", *VerifyReport._fields}
    for name, fields in (("finding", verdicts.FINDINGS[0]), ("check", verdicts.CHECKS[0])):
        assert set(schema["definitions"][name]["properties"]) == set(fields._fields)

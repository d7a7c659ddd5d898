"""Workflow commands: read back as the runner reads them, whatever the names are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given

from ckptool.render.github import errors_to_github, verdicts_to_github
from ckptool.render.text import printable
from ckptool.reports.base import ErrorReport
from helpers import verdicts

COMMAND = re.compile(r"::(?P<name>[a-z]+)(?: (?P<properties>.*?))?::(?P<data>.*)")
ANNOTATIONS = {"error": "error", "warning": "warning", "notice": "info"}


def unescaped(text: str, *marks: str) -> str:
    """What the runner makes of it: the per cent sign last."""
    codes = {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}
    for mark in (*marks, "%0D", "%0A", "%25"):
        text = text.replace(mark, codes[mark])
    return text


def commands(log: str) -> list[tuple[str, dict[str, str], str]]:
    """Name, properties and data of each command, as ``ActionCommand.TryParseV2`` of the runner."""
    found = []
    for line in log.split("\n"):
        if line.lstrip().startswith("::"):
            match = COMMAND.fullmatch(line)
            assert match, line
            pairs = [p.split("=", 1) for p in (match["properties"] or "").split(",") if p]
            properties = {key: unescaped(value, "%3A", "%2C") for key, value in pairs}
            found.append((match["name"], properties, unescaped(match["data"])))
        else:
            assert "##[" not in line, "the runner's old form is obeyed anywhere in a line"
    return found


def annotations(log: str) -> list[tuple[str, dict[str, str], str]]:
    return [command for command in commands(log) if command[0] in ANNOTATIONS]


@given(verdicts.report_lists())
def test_there_is_one_annotation_a_fault_whatever_it_says(reports):
    """A fault that two rules tell in the same words is one."""

    said = [
        (name, properties["file"])
        for name, properties, _ in annotations(verdicts_to_github(reports))
    ]
    assert said == [
        ({"info": "notice"}.get(severity, severity), printable(report.path))
        for report in reports
        for severity, *_ in dict.fromkeys(
            (finding.severity, finding.address, finding.message, finding.remedy)
            for finding in report.findings
        )
    ]


@given(verdicts.report_lists())
def test_there_are_no_commands_but_ours(reports):
    names = [name for name, _, _ in commands(verdicts_to_github(reports))]
    assert set(names) <= {*ANNOTATIONS, "group", "endgroup"}
    assert names.count("group") == names.count("endgroup") == len(reports)


@given(verdicts.report_lists())
def test_every_check_has_a_line_in_the_group_of_its_file(reports):
    lines = [line for line in verdicts_to_github(reports).split("\n") if not line.startswith("::")]
    expected = [check for report in reports for check in report.checks]
    assert [line[:11].strip().replace(" ", "-") for line in lines] == [c.state for c in expected]


def test_an_annotation_names_file_rule_place_and_remedy():
    assert annotations(verdicts_to_github([verdicts.bad()]))[0] == (
        "error",
        {"file": "runs/bad.ckpt", "title": "CK102 truncated"},
        "state_dict/a.weight: 64 bytes are missing\nget the file again",
    )


@pytest.mark.parametrize("name", ["a,title=b", "a::b", "a%0Ab", "a%3A:b", "100%"])
def test_what_stands_in_a_property_comes_back_as_it_was(name):
    ((_, properties, data), *_) = annotations(verdicts_to_github([verdicts.bad(name)]))
    assert properties == {"file": name, "title": "CK102 truncated"}
    assert data.endswith("get the file again")


def test_what_could_not_be_done_at_all_is_an_annotation():
    error = {"message": "no such file", "path": "a,b.ckpt", "address": None, "hint": "look\nthere"}
    assert commands(errors_to_github([ErrorReport(error)])) == [
        ("error", {"file": "a,b.ckpt", "title": "ckptool"}, "no such file\nlook\\x0athere")
    ]


def test_the_group_says_what_came_out():
    assert "::group::runs/good.ckpt: passed; 1 ok; 1 not checked" in verdicts_to_github(
        [verdicts.good()]
    )

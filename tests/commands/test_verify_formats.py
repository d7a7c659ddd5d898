"""``verify --format`` and ``--report``: the same answer, for whoever asks."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch

from ckptool.render.outputs import outputs_of
from helpers.making import weights
from helpers.paths import FIXTURES
from helpers.published import assert_junit, assert_ours, assert_sarif
from helpers.told import READERS

AVERAGED = FIXTURES / "ema" / "has_ema" / "late.pt"
YOUNG = FIXTURES / "ema" / "emacallback" / "exported.ckpt"  # has a warning
FORMATS = outputs_of("VerifyReport")[1:]  # but for text


@pytest.fixture
def half(tmp_path):
    """A checkpoint that was cut off."""
    path = tmp_path / "half.pt"
    path.write_bytes(AVERAGED.read_bytes()[: AVERAGED.stat().st_size // 2])
    return path


def documents(output) -> list[dict]:
    return output.json if isinstance(output.json, list) else [output.json]


@pytest.mark.parametrize("options", [(), ("--require", "intact,ema")], ids=str)
@pytest.mark.parametrize("name", READERS)
def test_the_three_states_are_the_same_in_every_format(name, options, half, ckptool):
    for path in (AVERAGED, YOUNG, half):
        asked = ("verify", path, *options)
        (document,) = documents(ckptool(*asked, "--json"))
        output = ckptool(*asked, "--format", name)
        expected = {check["rule"]: check["state"] for check in document["checks"]}
        assert READERS[name](output) == expected
        assert {"passed", "failed", "not-checked"} >= set(expected.values())
        assert output.exit_code == (0 if document["ok"] else 1)


@pytest.mark.parametrize("options", [(), ("--require", "intact,ema")], ids=str)
def test_text_tells_them_too(options, half, ckptool):
    for path in (AVERAGED, YOUNG, half):
        (document,) = documents(ckptool("verify", path, *options, "--json"))
        text = ckptool("verify", path, *options, "--verbose")
        order = [check["rule"] for check in document["checks"]]
        states = Counter(check["state"] for check in document["checks"])
        assert f"{states['passed']} ok; {states['not-checked']} not checked" in text
        findings, _, unchecked = text.partition("\nNot checked\n")
        rows = re.findall(r"^  (CK\d{3})  .*?(?:\(also (CK[^)]*)\))?$", findings, re.MULTILINE)
        told = [
            rule for first, others in rows for rule in (first, *filter(None, others.split(", ")))
        ]
        assert sorted(told) == sorted(finding["rule"] for finding in document["findings"])
        assert unfolded(unchecked, order) == [
            check["rule"] for check in document["checks"] if check["state"] == "not-checked"
        ]


def unfolded(text: str, order: list[str]) -> list[str]:
    """``CK101–CK103`` as the rules that it stands for, in the order of the table."""
    rules: set[str] = set()
    for first, last in re.findall(r"(CK\d{3})(?:–(CK\d{3}))?", text):
        rules.update(order[order.index(first) : order.index(last or first) + 1])
    return sorted(rules, key=order.index)


def test_a_reason_stands_once_with_all_the_rules_it_holds_for(ckptool):
    """So a reason does not name its rule."""
    shown = ckptool("verify", AVERAGED, "--verbose")
    _, _, unchecked = shown.partition("\nNot checked\n")
    assert len(re.findall("off by default", unchecked)) == 1


@pytest.mark.parametrize("name", [*FORMATS, "text"])
def test_every_format_names_what_is_wrong_and_where(name, half, ckptool):
    output = ckptool("verify", half, "--format", name)
    assert output.exit_code == 1
    assert "CK10" in output
    assert half.name in output
    assert "\x1b" not in output


def test_documents_are_as_published(half, ckptool):
    files = (AVERAGED, YOUNG, half)
    assert_sarif(json.loads(ckptool("verify", *files, "--format", "sarif")))
    assert_sarif(json.loads(ckptool("verify", *files, "--format", "code-scanning")))


@pytest.mark.slow
def test_junit_is_as_published(half, ckptool):
    assert_junit(ckptool("verify", AVERAGED, YOUNG, half, "--format", "junit"))


def test_our_documents_are_as_we_say(half, ckptool):
    for document in documents(ckptool("verify", AVERAGED, YOUNG, half, "--json")):
        assert_ours(document)
        rules = {check["rule"] for check in document["checks"] if check["state"] != "passed"}
        assert {finding["rule"] for finding in document["findings"]} <= rules
    for asked in (("--json",), ("--format", "json"), ("--format=json",)):
        assert_ours(ckptool("verify", "missing.pt", *asked).json)


def test_json_and_format_json_are_the_same(ckptool):
    assert ckptool("verify", AVERAGED, "--json") == ckptool("verify", AVERAGED, "--format", "json")


@pytest.mark.parametrize("name", FORMATS)
def test_a_report_in_a_file_is_what_would_be_printed(name, half, tmp_path, ckptool):
    file = tmp_path / "report"
    file.write_text("of yesterday")
    output = ckptool("verify", AVERAGED, half, "--report", f"{name}={file}", "--force")
    assert output.exit_code == 1
    assert output == ckptool("verify", AVERAGED, half)
    assert file.read_text() == ckptool("verify", AVERAGED, half, "--format", name)


def test_there_may_be_several_reports(tmp_path, ckptool):
    asked = [f"--report={name}={tmp_path / name}" for name in FORMATS]
    assert ckptool("verify", AVERAGED, *asked).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == set(FORMATS)


@pytest.mark.parametrize("asked", ["junit", "junit=", "=file", "pdf=file"])
def test_a_report_that_cannot_be_meant_is_refused_before_anything_is_read(asked, ckptool):
    output = ckptool("verify", "missing.pt", "--report", asked)
    assert output.exit_code == 2
    assert "cannot write a report" in output.stderr
    assert "junit" in output.stderr


def test_a_report_that_cannot_be_written_is_an_error(tmp_path, ckptool):
    output = ckptool("verify", AVERAGED, "--report", f"md={tmp_path / 'no' / 'such'}")
    assert output.exit_code == 2
    assert output.stderr.startswith("error: ")


@pytest.fixture
def run_folder(half):
    """A run whose newest checkpoint was cut off."""
    (half.parent / "good.pt").write_bytes(AVERAGED.read_bytes())
    return half.parent


def test_a_choice_is_a_document_with_the_verdicts_that_led_to_it(run_folder, ckptool):
    output = ckptool("verify", run_folder, "--latest-valid", "--json")
    assert output.exit_code == 0
    assert_ours(output.json)
    assert output.json["path"].endswith("good.pt")
    for report in output.json["reports"]:
        assert_ours(report)


@pytest.mark.parametrize("name", [name for name in READERS if name != "json"])
def test_a_choice_in_other_formats_is_those_verdicts(name, run_folder, ckptool):
    choice = ckptool("verify", run_folder, "--latest-valid", "--json").json
    output = ckptool("verify", run_folder, "--latest-valid", "--format", name)
    checks = [check for report in choice["reports"] for check in report["checks"]]
    assert output.exit_code == 0
    assert READERS[name](output) == {check["rule"]: check["state"] for check in checks}


def test_the_path_alone_is_printed_while_a_report_tells_the_rest(run_folder, tmp_path, ckptool):
    file = tmp_path / "report.md"
    output = ckptool("verify", run_folder, "--latest-valid", "--report", f"md={file}")
    assert output == f"{run_folder / 'good.pt'}\n"
    assert "good.pt" in file.read_text()


def test_an_unknown_format_is_refused(ckptool):
    output = ckptool("verify", AVERAGED, "--format", "pdf")
    assert output.exit_code == 2
    assert "pdf" in output.stderr


def test_github_gets_an_annotation_for_what_cannot_be_done(ckptool):
    output = ckptool("verify", "missing.pt", "--format", "github")
    assert output.exit_code == 2
    assert output.startswith("::error file=missing.pt,title=ckptool::no such file")
    assert output.stderr.startswith("error: missing.pt: no such file\nhint: ")


def test_a_fault_that_two_rules_tell_counts_once_in_every_format(tmp_path, ckptool):
    """The sample of CK303 finds the NaN that CK301 counts."""
    model = weights()
    model["head.weight"][0, 0] = float("nan")
    path = tmp_path / "nan.pt"
    torch.save({"model": model}, path)
    asked = ("verify", path, "--require", "finite")
    found = {finding["rule"] for finding in ckptool(*asked, "--json").json["findings"]}
    assert found == {"CK301", "CK303"}
    for name in ("text", "html", "md", "github"):
        counts = re.findall(r"(?<![K\d])(\d+) errors?\b", ckptool(*asked, "--format", name))
        assert set(counts) == {"1"}, name

"""What a person is shown of a verification, in a terminal and in a pipe."""

from __future__ import annotations

import argparse
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given

from ckptool.render.html_verify import verdicts_to_html
from ckptool.render.layout import draw
from ckptool.render.terminal import show
from ckptool.render.verify_text import show_failures, spans
from ckptool.reports.base import Finding, Severity
from helpers import verdicts


def shown(report, output="text") -> str:
    stream = io.StringIO()
    show(report if isinstance(report, list) else [report], stream, output=output)
    return stream.getvalue()


def test_findings_stand_by_severity_then_what_was_not_checked_and_the_verdict_is_last():
    assert (
        shown(verdicts.bad(), "verbose")
        == """\
runs/bad.ckpt  torch.save (zip), 2 KiB
Intact: no, because of 1 error

Errors
  CK102  state_dict/a.weight: 64 bytes are missing
         → get the file again

Warnings
  CK404  ema: the averages are the model's own values

Notes
  CK409  ema: 1 of 4 weights has no average

Not checked
  reads every byte: ask with --bytes  CK103

failed: 1 error, 1 warning, 1 note, 1 ok; 1 not checked
"""
    )


def test_what_was_not_checked_is_one_number_unless_asked_for():
    lines = shown(verdicts.bad()).splitlines()
    assert "Not checked" not in lines
    assert lines[-1].endswith("; 1 not checked (--verbose lists them)")


def test_quiet_tells_of_files_that_fail_and_only_why():
    assert shown(verdicts.good(), "quiet") == ""
    said = shown([verdicts.good(), verdicts.bad()], "quiet")
    assert "good.ckpt" not in said
    assert re.findall(r"CK\d+", said) == ["CK102"]


def test_a_fault_that_two_rules_find_is_shown_and_counted_once():
    both = tuple(Finding(f"CK{n}", Severity.ERROR, "w", f"NaN {n}") for n in (301, 303))
    said = shown(replace(verdicts.bad(), findings=both))
    assert "CK301" in said
    assert "CK303" not in said
    assert "failed: 1 error," in said


def test_no_size_is_stated_where_it_is_unknown():
    unopened = replace(verdicts.bad(), format=None, size_bytes=0)
    assert shown(unopened).splitlines()[0] == "runs/bad.ckpt  cannot be opened"
    assert shown(replace(unopened, size_bytes=2048)).startswith(
        "runs/bad.ckpt  cannot be opened, 2 KiB\n"
    )


def test_rules_with_one_message_are_one_finding():
    why = "required, but not checked: the file cannot be opened"
    same = tuple(Finding(f"CK{n}", Severity.ERROR, "", why) for n in (103, 104, 501))
    cut = Finding("CK102", Severity.ERROR, "", "truncated")
    said = shown(replace(verdicts.bad(), findings=(same[0], cut, *same[1:])))
    assert said.count("required, but not checked") == 1
    assert f"  CK103  {why} (also CK104, CK501)\n  CK102  truncated\n" in said
    assert "failed: 2 errors" in said


def test_a_note_that_several_files_share_is_told_once():
    one, other = verdicts.bad(), replace(verdicts.bad(), path="runs/other.ckpt")
    said = shown([one, other])
    assert said.count("CK404") == said.count("CK409") == 1
    assert "  CK409  in 2 files: ema: 1 of 4 weights has no average" in said
    assert said.count("CK102") == 2  # a file fails for it


def test_faults_that_differ_in_numbers_alone_are_told_once_unless_asked_for():
    one, other = verdicts.bad("runs/a.ckpt"), verdicts.bad("runs/b.ckpt")
    young = [replace(verdicts.FINDINGS[1], message=f"young: {n} % of it") for n in ("82", "3.5")]
    reports = [replace(one, findings=young[:1]), replace(other, findings=young[1:])]
    assert "  CK404  in 2 files, such as a.ckpt: ema: young: 82 % of it\n" in shown(reports)
    assert shown(reports).count("CK404") == 1
    assert shown(reports, "verbose").count("CK404") == 2


def test_a_sample_that_is_not_finite_is_told_with_the_count_of_all_values():
    error = Severity.ERROR
    sampled = Finding("CK303", error, "model/w", "NaN among the first values")
    counted = Finding("CK301", error, "model/w", "1 of 4 values is NaN")
    report = replace(verdicts.bad(), findings=(sampled, counted))
    assert re.findall(r"CK30\d", shown(report)) == ["CK301"]
    assert "CK303" in shown(replace(report, findings=(sampled,)))


def test_several_files_say_once_what_was_not_checked_and_end_with_the_count():
    assert (
        shown([verdicts.good(), verdicts.good(), verdicts.unreadable()], "verbose")
        == """\
runs/good.ckpt  torch.save (zip), 2 KiB: passed
runs/good.ckpt  torch.save (zip), 2 KiB: passed

runs/none.ckpt  cannot be opened, 3 B: failed

Errors
  CK101  not a checkpoint

Not checked
  reads every byte: ask with --bytes  CK103, in 2 of 3 files
  the file could not be opened  CK102, in 1 of 3 files

2 of 3 passed; 2 not checked
"""
    )


@pytest.mark.parametrize("strict", [False, True])
def test_failures_are_those_for_which_the_file_fails(strict):
    stream = io.StringIO()
    draw(show_failures(replace(verdicts.bad(), strict=strict)), stream)
    assert "CK102" in stream.getvalue()
    assert ("CK404" in stream.getvalue()) == strict
    assert "CK409" not in stream.getvalue()
    assert "Not checked" not in stream.getvalue()


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (["a"], "a"),
        (["b", "a"], "a, b"),
        (["a", "b", "c"], "a–c"),
        (["a", "c", "d", "e", "g"], "a, c–e, g"),
        ([], ""),
    ],
)
def test_neighbours_in_the_table_are_a_span(rules, text):
    assert spans(rules, "abcdefg") == text


@given(verdicts.report_lists())
def test_no_name_steers_the_terminal(reports):
    for report in (reports[0], reports):
        assert all(line.isprintable() for line in shown(report).split("\n"))


def test_a_long_remedy_of_a_note_is_folded(ckptool, tmp_path):
    """Which names torch's safe loader refuses is an aside, unless somebody requires it."""
    args = argparse.Namespace(lr=np.float64(0.1))
    torch.save({"w": torch.ones(2), "args": args}, tmp_path / "a.pt")
    whole = ckptool("verify", tmp_path / "a.pt", "--json").json["findings"][0]["remedy"]
    shown = ckptool("verify", tmp_path / "a.pt").stdout
    (row,) = (each for each in shown.splitlines() if each.strip().startswith("→"))
    assert whole not in shown
    assert len(row) < 200
    assert row.endswith(" … (--verbose has all of it)")
    for more in (("--verbose",), ("--require", "weights-only")):
        assert whole in ckptool("verify", tmp_path / "a.pt", *more)


# -------------------------------------------------------------------------------------- required

FOUND = {
    "nothing": ((), "Safe: yes, no name in its pickles is dangerous or unknown"),
    "one": ((Finding("CK201", "error", "a", "it runs"),), "Safe: no, because of 1 error"),
    "another": (
        (Finding("CK102", "error", "", "it is cut off"),),
        "Safe: yes, no name in its pickles is dangerous or unknown",
    ),
}


@pytest.mark.parametrize("found", FOUND)
def test_a_requirement_is_answered_in_words(found):
    findings, said = FOUND[found]
    report = verdicts.required("safe", findings)
    assert said in shown(report).splitlines()
    assert f">{said.partition(' ')[2]}<" in verdicts_to_html([report])


def test_an_answer_names_what_was_to_be_ignored():
    report = verdicts.required("safe", (), ignored="CK203")
    assert "Safe: yes, apart from CK203, to be ignored" in shown(report)


def test_a_file_that_cannot_be_opened_meets_no_requirement():
    report = verdicts.required("finite", FOUND["another"][0], form=None)
    assert "Finite: no, because of 1 error" in shown(report)

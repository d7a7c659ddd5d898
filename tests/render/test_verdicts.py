"""What a person is shown of a verification, in a terminal and in a pipe."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given

from ckptool.render.page import draw
from ckptool.render.terminal import show
from ckptool.render.verify_text import show_failures, spans
from helpers import verdicts


def shown(report) -> str:
    stream = io.StringIO()
    show(report if isinstance(report, list) else [report], stream)
    return stream.getvalue()


def test_the_verdict_comes_first_then_findings_by_severity_then_what_was_not_checked():
    assert (
        shown(verdicts.bad())
        == """\
runs/bad.ckpt  torch-zip, 2 KiB: failed
1 error, 1 warning, 1 note; 5 checks: 3 failed, 1 not checked, 1 passed
required: ema, resume

Errors
  CK102  state_dict/a.weight: 64 bytes are missing
         → get the file again

Warnings
  CK404  ema: the averages are the model's own values

Worth knowing
  CK409  ema: 1 of 4 weights has no average

Not checked
  reads every byte: ask with --bytes  CK103
"""
    )


def test_several_files_say_once_what_was_not_checked_and_end_with_the_count():
    assert (
        shown([verdicts.good(), verdicts.good(), verdicts.unreadable()])
        == """\
runs/good.ckpt  torch-zip, 2 KiB: passed
runs/good.ckpt  torch-zip, 2 KiB: passed

runs/none.ckpt  cannot be opened, 3 B: failed
1 error; 2 checks: 1 failed, 1 not checked, 0 passed

Errors
  CK101  not a checkpoint

Not checked
  reads every byte: ask with --bytes  CK103, in 2 of 3 files
  the file could not be opened  CK102, in 1 of 3 files

2 of 3 passed
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

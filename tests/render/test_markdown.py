"""Markdown: read back by a parser that is not ours, whatever the names are."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from markdown_it import MarkdownIt

from ckptool.formats.pickles.weights_only import allowing_line
from ckptool.render.markdown import MAX_ROWS, inline, remedy, verdicts_to_markdown
from ckptool.render.text import printable
from helpers import verdicts

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HARMLESS = {"text", "code_inline"}


def cells(markdown: str) -> list[list[str]]:
    """The texts of the cells of each row of each table."""
    rows: list[list[str]] = []
    for token, before in zip(tokens := PARSER.parse(markdown), [None, *tokens], strict=False):
        if token.type == "tr_open":
            rows.append([])
        if before is not None and before.type in {"th_open", "td_open"}:
            rows[-1].append(text(token))
    return rows


def text(token) -> str:
    return "".join(child.content for child in token.children)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("the averages are the model's own values", "the averages are the model's own values"),
        ("layer.weight", "`layer.weight`"),
        ("under ema_state_dict, with 12 of 1,200", "under `ema_state_dict`, with 12 of 1,200"),
        ("@somebody", "`@somebody`"),
        ("see #12: http://a.b/c.", "see `#12`: `http://a.b/c`."),
        ("<script> and **bold**", "`<script>` and `**bold**`"),
        ("a|b `c`", r"`a\x7cb` `\x60c\x60`"),
        ("two\nlines", r"`two\x0alines`"),
        ("grows by 5 % (a third)", "grows by 5 % (a third)"),
        ("größe", "größe"),
        ("", "–"),
    ],
)
def test_what_is_no_plain_word_is_code(said, shown):
    assert inline(said) == shown


@given(verdicts.names())
def test_nothing_in_a_name_is_obeyed(name):
    (paragraph,) = (t for t in PARSER.parse(f"Found {inline(name)}") if t.type == "inline")
    assert {child.type for child in paragraph.children} <= HARMLESS


@given(verdicts.names())
def test_a_name_can_be_read_again(name):
    (paragraph,) = (t for t in PARSER.parse(f"Found {inline(name)}") if t.type == "inline")
    expected = printable(name).replace("`", r"\x60").replace("|", r"\x7c").split()
    assert text(paragraph).split()[1:] == (expected or ["–"])


LINE = allowing_line(["numpy._core.multiarray._reconstruct", "numpy.dtype", "a.b"])


def read_back(said: str) -> list[tuple[str, str]]:
    """What a reader of a cell sees: (text or code, content)."""
    page = PARSER.parse(f"| What to do |\n|---|\n| {remedy(said)} |")
    cell = [token for token in page if token.type == "inline"][1]
    return [(child.type.removesuffix("_inline"), child.content) for child in cell.children]


@pytest.mark.parametrize(
    ("said", "pasted"),
    [
        (LINE, [LINE]),
        (f"run {LINE}. Then load it", [LINE]),
        ("x(1, 'a b'); y.z(); go on", ["x(1, 'a b'); y.z()"]),
        ("save f(a | b)['c'].d(2) too", ["f(a | b)['c'].d(2)"]),
        ("save a.get_state() and b.get_state(), both", ["a.get_state()", "b.get_state()"]),
        ("ckptool verify --values says which", ["ckptool verify --values"]),
        ("make it again: ckptool extract-ema SOURCE", ["ckptool extract-ema SOURCE"]),
        ("leave it out with --ignore CK507 when there is none", ["--ignore CK507"]),
        ("is this (of another", []),
        ("a (b) c; d", []),
    ],
)
def test_what_is_to_be_pasted_reads_back_as_one_piece(said, pasted):
    read = read_back(said)
    assert [content for kind, content in read if kind == "code"] == pasted
    assert re.sub(r"\s", "", "".join(content for _, content in read)) == re.sub(r"\s", "", said)


@given(verdicts.names())
def test_nothing_in_a_remedy_is_obeyed(name):
    assert {kind for kind, _ in read_back(f"load f({name}) as {name}")} <= {"text", "code"}


def test_brackets_that_stay_open_take_no_square_of_their_number():
    begun = time.process_time()
    remedy("f(" * 100_000)
    assert time.process_time() - begun < 2


@given(verdicts.report_lists())
def test_every_row_has_as_many_cells_as_its_table_has_columns(reports):
    lines = verdicts_to_markdown(reports).splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if above.startswith("|") and line.startswith("|"):
            bars = [len(re.findall(r"(?<!\\)\|", row)) for row in (line, above)]
            assert bars[0] == bars[1]


@given(verdicts.report_lists())
def test_html_and_headings_are_ours_alone(reports):
    tokens = PARSER.parse(verdicts_to_markdown(reports))
    html = {token.content.strip() for token in tokens if token.type == "html_block"}
    assert all(block.startswith(("<details><summary>", "</details>")) for block in html)
    headings = [token for token in tokens if token.type == "heading_open"]
    assert len(headings) == len(reports) + (len(reports) > 1)


def test_a_finding_is_a_row_with_where_what_and_what_to_do():
    rows = cells(verdicts_to_markdown([verdicts.bad()]))
    assert rows[1:3] == [
        ["❌ error", "CK102", "state_dict/a.weight", "64 bytes are missing", "get the file again"],
        ["⚠️ warning", "CK404", "ema", "the averages are the model's own values", "–"],
    ]


def test_checks_that_were_not_made_for_one_reason_share_a_row():
    checks = tuple(
        replace(verdicts.CHECKS[2], rule=rule, reason=why)
        for rule, why in (("CK1", "a"), ("CK2", "b"), ("CK3", "a"))
    )
    rows = cells(verdicts_to_markdown([replace(verdicts.good(), checks=checks)]))
    assert rows == [["Why", "Checks"], ["a", "CK1 checksum, CK3 checksum"], ["b", "CK2 checksum"]]


def test_several_files_begin_with_a_table_of_them():
    said = verdicts_to_markdown([verdicts.good(), verdicts.bad()])
    assert said.startswith("## ❌ 1 of 2 passed")
    assert cells(said)[1][:2] == ["✅ passed", "runs/good.ckpt"]
    assert cells(said)[2][:2] == ["❌ failed", "runs/bad.ckpt"]


def test_a_flood_of_findings_is_cut_and_counted():
    (one, *_) = verdicts.FINDINGS
    findings = tuple(replace(one, address=str(at)) for at in range(MAX_ROWS + 7))
    flood = replace(verdicts.bad(), findings=findings)
    said = verdicts_to_markdown([flood])
    assert said.count("64 bytes are missing") == MAX_ROWS
    assert "… and 7 more." in said

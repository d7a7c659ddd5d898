"""Markdown: read back by a parser that is not ours, whatever the names are."""

from __future__ import annotations

import pytest
from hypothesis import given
from markdown_it import MarkdownIt

import verdicts
from ckptool.render.markdown import MAX_ROWS, inline, to_markdown
from ckptool.render.text import printable

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


@given(verdicts.report_lists())
def test_every_row_has_as_many_cells_as_its_table_has_columns(reports):
    lines = to_markdown(reports).splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if above.startswith("|") and line.startswith("|"):
            assert line.count("|") == above.count("|")


@given(verdicts.report_lists())
def test_html_and_headings_are_ours_alone(reports):
    tokens = PARSER.parse(to_markdown(reports))
    html = {token.content.strip() for token in tokens if token.type == "html_block"}
    assert all(block.startswith(("<details><summary>", "</details>")) for block in html)
    headings = [token for token in tokens if token.type == "heading_open"]
    assert len(headings) == len(reports) + (len(reports) > 1)


def test_a_finding_is_a_row_with_where_what_and_what_to_do():
    rows = cells(to_markdown([verdicts.bad()]))
    assert rows[1:3] == [
        ["❌ error", "CK102", "state_dict/a.weight", "64 bytes are missing", "get the file again"],
        ["⚠️ warning", "CK404", "ema", "the averages are the model's own values", "–"],
    ]


def test_checks_that_were_not_made_for_one_reason_share_a_row():
    checks = tuple(
        verdicts.CHECKS[2]._replace(rule=rule, reason=why)
        for rule, why in (("CK1", "a"), ("CK2", "b"), ("CK3", "a"))
    )
    rows = cells(to_markdown([verdicts.good()._replace(checks=checks)]))
    assert rows == [["Why", "Checks"], ["a", "CK1 checksum, CK3 checksum"], ["b", "CK2 checksum"]]


def test_several_files_begin_with_a_table_of_them():
    said = to_markdown([verdicts.good(), verdicts.bad()])
    assert said.startswith("## ❌ 1 of 2 passed")
    assert cells(said)[1][:2] == ["✅ passed", "runs/good.ckpt"]
    assert cells(said)[2][:2] == ["❌ failed", "runs/bad.ckpt"]


def test_a_flood_of_findings_is_cut_and_counted():
    flood = verdicts.bad()._replace(findings=verdicts.FINDINGS[:1] * (MAX_ROWS + 7))
    said = to_markdown([flood])
    assert said.count("64 bytes are missing") == MAX_ROWS
    assert "… and 7 more." in said

"""Help fits a terminal of 80 columns, and says what each option does."""

from __future__ import annotations

import re

import pytest

from ckptool.cli import COMMANDS

COLUMNS = 80


@pytest.fixture(params=["", *COMMANDS], ids=lambda name: name or "ckptool")
def shown(request, ckptool, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    return ckptool(*request.param.split(), "--help")


def test_no_line_is_wider_than_a_terminal(shown):
    assert max(map(len, shown.splitlines())) < COLUMNS


def test_nothing_is_cut_short(shown):
    """An operand that can be given several times has the only dots."""
    assert not re.search(r"…|(?<![\],E])\.\.\.", shown.replace("[ARGS]...", ""))


def test_every_option_is_explained_by_a_sentence(shown):
    options = shown.partition("\nOptions:\n")[2].partition("\nCommands:\n")[0]
    entries = re.split(r"\n  (?=-)", options.strip("\n"))
    for entry in entries:
        text = " ".join(re.split(r"\s{2,}|\n\s*", entry.strip())[1:])
        assert re.match(r"[A-Z][^.]* ", text), entry
        assert re.search(r"\.(  ?\[default: [^]]*\])?$|Show this message and exit\.$", text), entry


def test_the_old_names_of_rules_are_not_advertised(ckptool):
    shown = ckptool("verify", "--help")
    assert "--select" not in shown
    assert not re.search(r"--ignore\b(?!-)", shown)

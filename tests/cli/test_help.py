"""Help fits a terminal of 80 columns, says what each option does, and shows an example."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
import torch

from ckptool.cli.catalogue import COMMANDS, command_of, spelled_out
from ckptool.cli.help import help_of_command
from helpers.output import run_inside
from helpers.paths import FIXTURES

COLUMNS = 80
EMA = FIXTURES / "ema" / "emacallback"


@pytest.fixture(params=["", *COMMANDS], ids=lambda name: name or "ckptool")
def shown(request, ckptool, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    return ckptool(*request.param.split(), "--help")


def test_no_line_is_wider_than_a_terminal(shown):
    assert max(map(len, shown.splitlines())) <= COLUMNS


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_narrow_terminals_get_whole_sentences_too(name, ckptool, monkeypatch):
    """At 40 columns options stand above their texts; no word but those of the usage is broken."""
    monkeypatch.setenv("COLUMNS", "40")
    narrow = ckptool(*name.split(), "--help")
    assert max(map(len, narrow.splitlines())) <= 40
    monkeypatch.setenv("COLUMNS", "200")
    assert "".join(narrow.split()) == "".join(ckptool(*name.split(), "--help").split())


def test_nothing_is_cut_short(shown):
    """An operand that can be given several times has the only dots."""
    assert not re.search(r"…|(?<![\],E])\.\.\.", shown.replace("[ARGS]...", ""))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_by_a_sentence(name):
    for title, entries in help_of_command(name).panels:
        for entry in entries:
            text = re.sub(r"( \[(default: [^]]*|required|at least \d+)\])*$", "", entry.text)
            assert re.fullmatch(r"[A-Z][^.]* .*\.", text), (title, entry)


@pytest.mark.parametrize("columns", ["60", "120", "0", "x"])
def test_help_in_a_pipe_is_as_wide_as_the_environment_says(columns, ckptool, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    widest = max(map(len, ckptool("verify", "--help").splitlines()))
    if columns in {"60", "120"}:
        assert int(columns) - 10 < widest <= int(columns)
    else:
        assert widest <= COLUMNS


def test_help_is_asked_for_anywhere_but_behind_two_dashes(ckptool):
    shown = ckptool("diff", "--help")
    assert shown == ckptool("diff", "a.pt", "-h") == ckptool("diff", "--atol", "x", "--help")
    refused = ckptool("verify", "a.pt", "--ignore-rules", "-h")  # a value: 0 would be "passed"
    assert (refused.exit_code, "no rule '-h'" in refused.stderr) == (2, True)
    assert ckptool("diff", "a.pt", "--", "--help").exit_code == 2
    assert "No such command" in ckptool("dif", "--help").stderr


def test_the_old_names_of_rules_are_not_advertised(ckptool):
    shown = ckptool("verify", "--help")
    assert "--select" not in shown
    assert not re.search(r"--ignore\b(?!-)", shown)


# --------------------------------------------------------------------------------- the catalogue


@pytest.mark.parametrize("name", COMMANDS)
def test_the_catalogue_says_what_the_commands_say(name, ckptool):
    assert command_of(name).__doc__.splitlines()[0] == COMMANDS[name].help
    assert f"Example: {COMMANDS[name].example}" in " ".join(ckptool(name, "--help").split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_work(name, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    for step in range(1, 6):
        state = {"model": {"w": torch.ones(2, 2) * step, "b": torch.ones(2)}, "global_step": step}
        torch.save(state, tmp_path / f"runs/{step}.ckpt")
    shutil.copy(EMA / "exported.ckpt", tmp_path / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    program, *args = shlex.split(COMMANDS[name].example)
    assert program == "ckptool"
    output = run_inside(*args)
    assert output.exit_code in ({0, 1} if name in {"verify", "diff"} else {0}), output


# ------------------------------------------------------------------------------------- short forms


def test_a_file_alone_is_inspected(ckptool):
    file = EMA / "exported.ckpt"
    assert ckptool(file) == ckptool("inspect", file)
    assert ckptool(f"{file}#hyper_parameters", "--json").json["address"] == "hyper_parameters"
    assert "no such file" in ckptool("missing.pt").stderr


def test_a_mistyped_command_is_no_file(ckptool):
    output = ckptool("inspekt", "a.pt")
    assert output.exit_code == 2
    assert "No such command 'inspekt'" in output.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ([], ["--help"]),
        (["help", "diff"], ["diff", "--help"]),
        (["a.pt", "--json"], ["inspect", "a.pt", "--json"]),
        (["runs/"], ["inspect", "runs/"]),
        (["diff", "a.pt"], ["diff", "a.pt"]),
        (["--version"], ["--version"]),
    ],
)
def test_short_forms_are_written_out(typed, meant):
    assert spelled_out(typed) == meant


def test_help_and_version_have_the_usual_names(ckptool):
    assert ckptool("help") == ckptool("--help") == ckptool()
    assert ckptool("help", "diff") == ckptool("diff", "--help")
    assert ckptool("-V") == ckptool("--version")

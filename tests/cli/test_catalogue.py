"""The table of commands says what the commands say themselves."""

from __future__ import annotations

import pytest

from ckptool.cli.catalogue import COMMANDS, command_of, spelled_out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_example_are_those_of_the_command(name):
    command = COMMANDS[name]
    assert command_of(name).__doc__.splitlines()[0] == command.help
    assert command.example.startswith(f"ckptool {name}")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ([], ["--help"]),
        (["help"], ["--help"]),
        (["help", "diff"], ["diff", "--help"]),
        (["no/such.pt", "--json"], ["inspect", "no/such.pt", "--json"]),
        (["average", "a.pt"], ["average", "a.pt"]),
        (["-V"], ["-V"]),
        (["--json", "no/such.pt"], ["inspect", "--json", "no/such.pt"]),
        (["--format", "json", "a.pt"], ["inspect", "--format", "json", "a.pt"]),
        (["--json", "diff", "a.pt", "b.pt"], ["diff", "--json", "a.pt", "b.pt"]),
        (["--match", "model/*", "diff", "a", "b"], ["diff", "--match", "model/*", "a", "b"]),
        (["--atol", "0.1", "diff", "a", "b"], ["diff", "--atol", "0.1", "a", "b"]),
        (["--format", "md", "verify", "a.pt"], ["verify", "--format", "md", "a.pt"]),
        (["--", "a.pt"], ["inspect", "--", "a.pt"]),
        (["--json"], ["--json"]),
        (["--json", "inspct"], ["--json", "inspct"]),
        (["--help", "a.pt"], ["--help", "a.pt"]),
        (["--show-completion", "a.pt"], ["--show-completion", "a.pt"]),
        (["inspct"], ["inspct"]),
    ],
)
def test_short_forms(typed, meant):
    assert spelled_out(typed) == meant


def test_an_option_before_the_command_may_name_a_file_that_exists(tmp_path, monkeypatch):
    """The output of yesterday: -o out.pt convert a.pt."""
    monkeypatch.chdir(tmp_path)
    for name in ("out.pt", "a.pt"):
        (tmp_path / name).touch()
    typed = ["-o", "out.pt", "convert", "a.pt"]
    assert spelled_out(typed) == ["convert", "-o", "out.pt", "a.pt"]
    assert spelled_out(["--format", "json", "a.pt"]) == ["inspect", "--format", "json", "a.pt"]
    (tmp_path / "verify").touch()
    assert spelled_out(["--json", "diff", "verify", "a.pt"]) == ["diff", "--json", "verify", "a.pt"]
    assert spelled_out(["--like", "verify", "diff", "a"]) == ["diff", "--like", "verify", "a"]

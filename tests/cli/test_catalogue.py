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
        (["inspct"], ["inspct"]),
    ],
)
def test_short_forms(typed, meant):
    assert spelled_out(typed) == meant

"""Options that a hint names, though neither the command that ran nor one in the hint has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from ckptool.cli.catalogue import COMMANDS, OF_THE_PROGRAM, command_of, spelled_out
from ckptool.cli.parameters import parameters_of

HINT = re.compile(r"^hint: (.*)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?<!-)")
WORD = re.compile(r"[a-z-]+")


@cache
def options_of(command: str) -> frozenset[str]:
    """Return the options of a command of ckptool."""
    known = parameters_of(command_of(command))
    return OF_THE_PROGRAM | {name for one in known for name, _ in one.spellings}


def foreign_options(args: Sequence[object], stderr: str) -> list[str]:
    """Return the options in the hints on stderr that can be typed nowhere."""
    command = next(iter(spelled_out([str(arg) for arg in args])), "")
    if command not in COMMANDS:
        return []
    return [option for hint in HINT.findall(stderr) for option in _foreign(command, hint)]


def options_in_python(hint: str) -> list[str]:
    """Return the options in a hint of the library that no command in the hint has."""
    return [*_foreign(None, hint)]


def _foreign(command: str | None, hint: str) -> Iterator[str]:
    named = {word for word in WORD.findall(hint) if word in COMMANDS}
    known = frozenset().union(*map(options_of, named | ({command} if command else set())))
    yield from (option for option in OPTION.findall(hint) if option not in known)

"""The report of ``--help``; see base.py."""

from __future__ import annotations

from ckptool.records import NamedTuple, record


class Entry(NamedTuple):
    """A row of a help page: an option, an operand or a command."""

    name: str  # -o, --output
    value: str  # OUT; empty for flags, operands and commands
    text: str


@record
class HelpReport:
    """The help of a command, or that of the program."""

    usage: str
    about: tuple[str, ...]  # paragraphs; an indented one is to be copied
    panels: tuple[tuple[str, tuple[Entry, ...]], ...]  # with their titles
    example: str

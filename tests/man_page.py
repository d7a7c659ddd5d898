"""Writes ``docs/man/ckptool.1`` from the help of the commands: ``python tests/man_page.py``.

The wheel installs it as ``share/man/man1/ckptool.1``, where ``man ckptool`` finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from ckptool import __version__
from ckptool.cli.catalogue import COMMANDS
from ckptool.cli.program import program as make_program
from helpers.paths import REPOSITORY

PAGE = REPOSITORY / "docs/man/ckptool.1"

EXIT_CODES = (
    ("0", "Done; verified; no differences."),
    ("1", "The answer is no: verify has failing findings, diff found differences."),
    ("2", "It could not be done: usage, damaged input, no EMA or several, output refused."),
    ("130", "Interrupted."),
)  # fmt: skip
ROFF = str.maketrans({
    "\\": r"\e", "-": r"\-", "'": r"\(aq", "“": r"\(lq", "”": r"\(rq", "–": r"\(en", "…": "...",
})  # fmt: skip
OPERANDS = (
    "PATH is a file, or a directory that is one checkpoint; a directory of several is a run. "
    "#ADDRESS names a part: keys joined by /, or @ema and @model, the EMA weights and the raw ones."
)


def page() -> str:
    """All of it, in roff."""
    program: Any = typer.main.get_command(make_program(COMMANDS))
    return "\n".join([*_head(program), *_commands(program), *_tail()]) + "\n"


def _head(program: Any) -> Iterator[str]:
    yield f'.TH CKPTOOL 1 "" "ckptool {__version__}" "User Commands"'
    yield from (".SH NAME", rf"ckptool \- {_text(program.help)}")
    yield ".SH SYNOPSIS"
    yield r"\fBckptool\fR \fICOMMAND\fR [\fIOPTIONS\fR] \fIPATH\fR[#\fIADDRESS\fR]"
    yield from (".SH DESCRIPTION", _text(program.epilog), ".PP", _text(OPERANDS))


def _commands(program: Any) -> Iterator[str]:
    yield ".SH COMMANDS"
    for name, row in COMMANDS.items():
        command = program.commands[name]
        context = typer.Context(command, info_name=f"ckptool {name}")
        usage = command.collect_usage_pieces(context)
        yield f".SS {_text(f'ckptool {name} ' + ' '.join(usage))}"
        paragraphs = re.split(r"\n\s*\n", command.help or row.help)
        yield "\n.PP\n".join(_text(" ".join(each.split())) for each in paragraphs)
        for parameter in command.params:
            if record := parameter.get_help_record(context):
                called, said = record
                yield from (".TP", rf"\fB{_text(called)}\fR", _text(_words(parameter, said)))
        yield from (".PP", rf"Example: \fB{_text(row.example)}\fR")


def _words(parameter: Any, record: str) -> str:
    """Return the help of a parameter, without the markup for terminals."""
    return " ".join((parameter.help or record).split())


def _tail() -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from (".TP", rf"\fB{code}\fR", _text(meaning))
    yield from (".SH ENVIRONMENT", ".TP", r"\fBNO_COLOR\fR, \fBFORCE_COLOR\fR")
    yield "Print without colours, or with colours also into a pipe."


def _text(words: str | None) -> str:
    """Return text that roff prints as it is."""
    plain = (words or "").translate(ROFF)
    return f"\\&{plain}" if plain.startswith(".") else plain


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())

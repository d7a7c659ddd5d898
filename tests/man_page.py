"""Writes ``docs/man/ckptool.1`` from the help of the commands: ``python tests/man_page.py``.

The wheel installs it as ``share/man/man1/ckptool.1``, where ``man ckptool`` finds it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptool import __version__
from ckptool.cli.catalogue import COMMANDS
from ckptool.cli.help import help_of_command, help_of_program
from ckptool.reports.help import HelpReport
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
    return "\n".join([*_head(help_of_program()), *_commands(), *_tail()]) + "\n"


def _head(program: HelpReport) -> Iterator[str]:
    yield f'.TH CKPTOOL 1 "" "ckptool {__version__}" "User Commands"'
    purpose, short_form = program.about
    yield from (".SH NAME", rf"ckptool \- {_text(purpose)}")
    yield ".SH SYNOPSIS"
    yield r"\fBckptool\fR \fICOMMAND\fR [\fIOPTIONS\fR] \fIPATH\fR[#\fIADDRESS\fR]"
    yield from (".SH DESCRIPTION", _text(short_form), ".PP", _text(OPERANDS))


def _commands() -> Iterator[str]:
    yield ".SH COMMANDS"
    for shown in map(help_of_command, COMMANDS):
        yield f".SS {_text(shown.usage)}"
        yield "\n.PP\n".join(_text(each.strip()) for each in shown.about)
        for entry in (entry for _, entries in shown.panels for entry in entries):
            called = f"{entry.name} {entry.value}".rstrip()
            yield from (".TP", rf"\fB{_text(called)}\fR", _text(entry.text))
        yield from (".PP", rf"Example: \fB{_text(shown.example)}\fR")


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

"""Files of reports, by the rules of every output: no operand, no existing file, whole or absent."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from ckptool.commands.operands import files_of
from ckptool.contents.selection import parse_operand
from ckptool.errors import UsageError
from ckptool.sources.urls import RemotePath
from ckptool.writers.files.destination import check_output
from ckptool.writers.files.whole_file import whole_file


def check_report_files(
    paths: Collection[Path], operands: Iterable[str | None], *, force: bool
) -> None:
    """Refuse files to which no report may be written, before the work begins.

    Args:
        paths: the files, as they were named.
        operands: everything that the command reads, as it was typed.
        force: existing files may be replaced, if no operand consists of them.

    Raises:
        OutputError: a file exists, is no regular file, or is a part of an operand.
        UsageError: two reports have one file.
    """
    targets = {os.path.realpath(path) for path in paths}
    if len(targets) < len(paths):
        raise UsageError("two reports would be written to one file", hint="name a file for each")
    # What does not exist is no part of anything: the operands are opened only where they may be.
    is_needed = force and any(map(os.path.lexists, targets))
    named = [parse_operand(text).path for text in operands if text is not None]
    named = [path for path in named if not isinstance(path, RemotePath)]
    inputs = [file for path in named for file in (path, *(files_of(path) if is_needed else ()))]
    for path in paths:
        check_output(path, inputs, force=force)


def write_report_file(path: Path, text: str, *, force: bool) -> None:
    """Write a report to a file, whole or not at all.

    Raises:
        OutputError: it cannot be written, or a file appeared there meanwhile.
    """
    with whole_file(check_output(path, (), force=force), force=force) as file:
        file.write(f"{text}\n".encode())

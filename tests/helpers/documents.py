"""Runs the console blocks of Markdown pages as a reader would type them, one after the other.

A page names its files in comments, ``<!-- files: last.ckpt = ema/timm/checkpoint-2.pth.tar -->``:
what a command calls them, and the fixture that they are copies of. All blocks of a page run in one
directory, so a command finds what the command before it wrote.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from helpers.output import Output, run_inside
from helpers.paths import FIXTURES, REPOSITORY

README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
FILES = re.compile(r"<!-- files:(?P<files>.*?)-->", re.DOTALL)
BLOCK = re.compile(r"(?<=^```console\n)(?P<text>.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
PROMPT = "$ "
EXIT_CODE = "echo $?"
DATE = 1_767_225_600  # 2026-01-01: in what a command writes, and of the files


def pages() -> list[Path]:
    """Return README and every page of the documentation."""
    return [README, *sorted(DOCS.rglob("*.md"))]


def page_id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@contextlib.contextmanager
def reader_of(text: str) -> Iterator[Path]:
    """Work in a directory with the files of a page; yield it."""
    steering = {"SOURCE_DATE_EPOCH": str(DATE), "TZ": "UTC"}
    before = {name: os.environ.get(name) for name in steering}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, fixture in files_of(text).items():
            _copy(FIXTURES / fixture, Path(name))
        os.environ.update(steering)
        time.tzset()
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            time.tzset()


def files_of(text: str) -> dict[str, str]:
    """Return the files of a page: their names there, and the fixtures that they are."""
    lines = "\n".join(match["files"] for match in FILES.finditer(text)).splitlines()
    pairs = (line.split("=") for line in lines if line.strip())
    return {name.strip(): fixture.strip() for name, fixture in pairs}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    for each in (target, *target.rglob("*")):
        os.utime(each, (DATE, DATE))


def typed(line: str) -> Output:
    """Run one command line, ``ckptool …``, maybe with ``> FILE`` at its end."""
    command, _, file = line.partition(" > ")
    program, *args = shlex.split(command, comments=True)
    assert program == "ckptool", line
    output = run_inside(*args)
    if file:
        Path(file).write_text(output)
    return output


def with_outputs(text: str) -> str:
    """Return a page in which every console block shows what its commands print."""
    with reader_of(text):
        return BLOCK.sub(lambda match: _played(match["text"]), text)


def _played(block: str) -> str:
    """Return the block with the outputs that its commands have now.

    Raises:
        AssertionError: a command fails, and the page does not go on to show its exit code.
    """
    lines, code = [], 0
    for line in block.splitlines():
        if not line.startswith(PROMPT):
            continue
        lines.append(line)
        if line == PROMPT + EXIT_CODE:
            lines.append(str(code))
            code = 0
            continue
        assert not code, f"exit code {code} is not shown before: {line}"
        output = typed(line.removeprefix(PROMPT))
        on_screen = output.stderr if " > " in line else output + output.stderr
        lines += on_screen.rstrip("\n").splitlines()
        code = output.exit_code
    assert not code, f"exit code {code} is not shown after: {lines}"
    return "".join(f"{line}\n" for line in lines)

"""Runs the command line on a terminal of its own, as a person sees it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from threading import Thread

import pytest

from ckptool.cli import main
from helpers.output import environment

STREAMS = (0, 1, 2)  # stdin, stdout and stderr
WIDTH = 80
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROGRESS = re.compile(r"\r[^\r\n]*\x1b\[K")


def on_terminal(*args, env=None, width=WIDTH) -> str:
    """What the command line writes on a terminal, run in this process: a tenth of the time.

    What the program adds is shown with :func:`process_on_terminal`.
    """
    with (
        screen(width) as (parts, theirs),
        standard_streams(theirs),
        pytest.MonkeyPatch.context() as patch,
        open(theirs, "w", 1, "utf-8", closefd=False) as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        for name, value in ({"TERM": "xterm-256color"} | (env or {})).items():
            patch.setenv(name, value)
        main([str(arg) for arg in args])
    return text_of(parts)


def process_on_terminal(*args, env=None, width=WIDTH) -> str:
    """What ``python -m ckptool`` writes on a terminal."""
    command = [sys.executable, "-m", "ckptool", *map(str, args)]
    env = environment({"TERM": "xterm-256color"} | (env or {}))
    with screen(width) as (parts, theirs):
        subprocess.run(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, timeout=60, check=False
        )
    return text_of(parts)


@contextlib.contextmanager
def screen(width: int) -> Iterator[tuple[list[bytes], int]]:
    """Yield what appears on a terminal, whole only afterwards, and its end for programs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    parts: list[bytes] = []
    reader = Thread(target=lambda: parts.extend(iter(lambda: read(ours), b"")))
    reader.start()  # a terminal takes some thousand characters until they are read
    try:
        yield parts, theirs
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


@contextlib.contextmanager
def standard_streams(descriptor: int) -> Iterator[None]:
    """Put a terminal in the place of the standard streams: Rich asks them for their width."""
    kept = [os.dup(stream) for stream in STREAMS]
    try:
        for stream in STREAMS:
            os.dup2(descriptor, stream)
        yield
    finally:
        for stream, before in zip(STREAMS, kept, strict=True):
            os.dup2(before, stream)
            os.close(before)


def text_of(parts: list[bytes]) -> str:
    """What stays on the terminal: progress is drawn where a machine is slow, and wiped again."""
    return PROGRESS.sub("", b"".join(parts).decode().replace("\r\n", "\n"))


def read(fd: int) -> bytes:
    """What comes next; nothing when the other end is closed."""
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""


def plain(text: str) -> str:
    return ESCAPES.sub("", text)

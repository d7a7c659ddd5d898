"""Runs the command line on a terminal of its own, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from helpers.output import environment

WIDTH = 80
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*args, env=None, width=WIDTH) -> str:
    """What ``python -m ckptool`` writes on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    command = [sys.executable, "-m", "ckptool", *map(str, args)]
    env = environment({"TERM": "xterm-256color"} | (env or {}))
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        parts = []
        while part := read(ours):
            parts.append(part)
        process.wait(timeout=60)
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


def read(fd: int) -> bytes:
    """What comes next; nothing when the other end is closed."""
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""


def plain(text: str) -> str:
    return ESCAPES.sub("", text)

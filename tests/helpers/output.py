"""Runs the command line; the result is the output, with everything else about the run on it."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import ckptool
from ckptool.cli import main
from helpers.hints import foreign_options

WRITES_NOTHING = "writes no checkpoints on Windows"  # the refusal there

# What steers colours and widths; a developer's terminal must not decide about tests.
STEERING = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "COLUMNS", "LINES")


class Output(str):
    """What a command printed on stdout; also its exit code and what it said on stderr."""

    exit_code: int
    stderr: str

    @classmethod
    def of(cls, stdout: str, stderr: str, exit_code: int) -> Output:
        output = cls(stdout)
        output.stderr, output.exit_code = stderr, exit_code
        return output

    @property
    def stdout(self) -> str:
        return str(self)

    @property
    def json(self):
        """The document; one that holds NaN is none."""
        return json.loads(self, parse_constant=_refuse)

    def __repr__(self) -> str:
        return f"<exit code {self.exit_code}\nstdout: {self}\nstderr: {self.stderr}>"


def _refuse(name: str):
    raise ValueError(f"{name} is no JSON")


def run_inside(*args: object) -> Output:
    """The command line in this process: fast, and a bug in it is a failing test."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), _uncollected():
        exit_code = main([str(arg) for arg in args])
    assert not foreign_options(args, stderr.getvalue()), stderr.getvalue()
    if WRITES_NOTHING in stderr.getvalue() + stdout.getvalue():
        pytest.skip("this test needs to write a checkpoint")
    return Output.of(stdout.getvalue(), stderr.getvalue(), exit_code)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, like the program."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return that of a fresh process: the package is the one that the tests import.

    What Python compiled is kept beside the package, whatever this process does: a process that
    compiles the whole package takes twice the time.
    """
    ours = {*STEERING, "PYTHONDONTWRITEBYTECODE"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    found = str(Path(ckptool.__file__).resolve().parents[1])
    return kept | {"PYTHONPATH": found} | dict(extra or {})


def run_process(*args: object, env: Mapping[str, str] | None = None, **options) -> Output:
    """``python -m ckptool`` in a process of its own."""
    command = [sys.executable, "-m", "ckptool", *map(str, args)]
    done = subprocess.run(
        command, env=environment(env), capture_output=True, text=True, timeout=60, check=False,
        **options,
    )  # fmt: skip
    return Output.of(done.stdout, done.stderr, done.returncode)

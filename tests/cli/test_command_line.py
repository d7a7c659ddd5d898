"""What a shell sees: streams, exit codes, pipes that break, progress."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckptool as library
from ckptool.cli import output as streams
from ckptool.process.progress import announce, parts
from helpers.making import average_of, save, weights
from helpers.output import environment
from helpers.paths import FIXTURES
from helpers.thinned import slow

EXPORTED = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
COMMANDS = ("inspect", "extract-ema", "promote-ema")


def test_version(ckptool):
    assert ckptool("--version") == f"ckptool {library.__version__}\n"


@pytest.mark.parametrize("args", [("--help",), ("-h",), ("inspect", "--help"), ("inspect", "-h")])
def test_help_is_an_answer(args, ckptool):
    output = ckptool(*args)
    assert (output.exit_code, output.stderr) == (0, "")
    assert "Usage: ckptool" in output


def test_every_command_is_in_the_help(ckptool):
    shown = ckptool("--help")
    for command in COMMANDS:
        assert f"\n  {command} " in shown


def test_answers_go_to_stdout_and_nothing_to_stderr(ckptool_process, tmp_path):
    for args in (
        ("inspect", EXPORTED),
        ("extract-ema", EXPORTED, "-o", tmp_path / "ema.pt"),
        ("promote-ema", EXPORTED, "-o", tmp_path / "promoted.ckpt"),
    ):
        output = ckptool_process(*args)
        assert (output.exit_code, output.stderr) == (0, "")
        assert output


def test_refusals_go_to_stderr_and_nothing_to_stdout(ckptool_process, tmp_path):
    output = ckptool_process("inspect", tmp_path / "missing.ckpt")
    assert (output.exit_code, output) == (2, "")
    assert len(output.stderr.splitlines()) == 2


def test_a_fresh_process_says_the_same(ckptool, ckptool_process):
    for options in ((), ("--json",), ("--tensors",), ("--stats",)):
        args = ("inspect", EXPORTED, *options)
        assert ckptool_process(*args) == ckptool(*args)


@pytest.mark.parametrize("options", [("--tensors",), ("--tensors", "--json")])
def test_a_reader_that_goes_away_is_no_error(options, tmp_path):
    """``ckptool inspect … | head -1``, with more output than a pipe holds."""
    path = tmp_path / "many.pt"
    torch.save({f"layer_{i}{'x' * 200}": torch.ones(i % 7 + 1) for i in range(2000)}, path)
    command = [sys.executable, "-m", "ckptool", "inspect", str(path), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def code_of_a_cut_answer(*args) -> int:
    """The exit code where nobody reads the answer: the pipe is closed before it is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ckptool", *map(str, args)]
    with os.fdopen(write, "w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, env=environment(), check=False
        )
    assert not done.stderr or done.stderr.startswith(b"error: ")  # what was refused is told there
    assert b"bug" not in done.stderr
    return done.returncode


@pytest.mark.parametrize(
    ("count", "form"),
    [(2, "text"), (400, "json"), slow(2, "json"), slow(400, "text")],  # 400 fill a buffer
)
def test_a_verdict_stands_also_when_nobody_reads_the_answer(count, form, tmp_path):
    """``ckptool verify … | head -1`` with ``set -o pipefail``."""
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    names = [f"layer_{i}{'x' * 200}" for i in range(count)]
    torch.save(dict.fromkeys(names, torch.ones(2)), one)
    torch.save({name: torch.full((2,), torch.nan) for name in names}, other)
    verify = ("verify", "--values", "--format", form)
    assert code_of_a_cut_answer(*verify, "--require", "finite", other) == 1
    assert code_of_a_cut_answer(*verify, "--require", "finite", one) == 0
    assert code_of_a_cut_answer(*verify, one, tmp_path / "absent.pt") == 2
    assert code_of_a_cut_answer("diff", "--format", form, one, other) == 1
    assert code_of_a_cut_answer("diff", "--format", form, one, one) == 0


# ----------------------------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    """A stream that says that somebody is watching."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def slow(monkeypatch):
    """A clock by which every look takes a second."""
    seconds = iter(range(1000))
    monkeypatch.setattr(streams.time, "monotonic", lambda: float(next(seconds)))


def test_progress_is_shown_on_a_terminal_and_wiped(slow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with streams.progressing("copying") as advance:
        for _ in range(4):
            advance(1 << 20)
    shown = sys.stderr.getvalue()
    assert "copying: 3 MiB" in shown
    assert shown.endswith("\r\x1b[K")


def test_progress_of_known_work_shows_its_share_and_the_time_left(slow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with streams.progressing("copying") as advance:
        announce(advance, 1000 << 20)
        for _ in range(4):
            advance(1 << 20)
    assert "copying: 0%, 4 MiB of 1,000 MiB, 1 MiB/s, 16:36 left" in sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("columns", "told"), [(40, "0%, 1 MiB/s, 16:36 left "), (30, "0% ")], ids=str
)
def test_progress_fits_narrow_terminals(columns, told, slow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(streams, "columns_of", lambda _stream: columns)
    with streams.progressing("copying") as advance:
        announce(advance, 1000 << 20)
        for _ in range(4):
            advance(1 << 20)
    lines = sys.stderr.getvalue().split("\r")
    assert lines[-2] == f"copying: {told}\x1b[K"


def test_progress_of_several_checkpoints_counts_them(slow, monkeypatch):
    """The bytes of the later ones are not known yet, so that a share of bytes would be wrong."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with streams.progressing("comparing") as advance:
        for _ in parts(advance, "abcd"):
            announce(advance, 2 << 20)
            advance(1 << 20)
            advance(1 << 20)
    shown = sys.stderr.getvalue()
    assert "comparing: 38%, 3 MiB, 2 of 4 files, 1 MiB/s, 5 s left" in shown
    assert "comparing: 100%, 8 MiB, 4 of 4 files, 1 MiB/s, 0 s left" in shown


def test_more_than_was_announced_has_no_share(slow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with streams.progressing("copying") as advance:
        announce(advance, 1 << 20)
        for _ in range(4):
            advance(1 << 20)
    assert "copying: 4 MiB, 1 MiB/s " in sys.stderr.getvalue()


COMMANDS_OF_VALUES = {
    "extracting": ("extract-ema", "{}", "-o", "{}.safetensors"),
    "extracting to half": ("extract-ema", "{}", "--dtype", "float16", "-o", "{}.safetensors"),
    "promoting": ("promote-ema", "{}", "-o", "{}.promoted.pt"),
    "verifying": ("verify", "{}", "--bytes", "--values"),
    "comparing": ("diff", "{}#@model", "{}#@ema"),
    "reading": ("inspect", "{}", "--stats"),
}


@pytest.mark.parametrize("args", COMMANDS_OF_VALUES.values(), ids=COMMANDS_OF_VALUES)
def test_commands_announce_the_bytes_that_they_do(args, ckptool, tmp_path, monkeypatch):
    path = save(tmp_path / "a.pt", model := weights(w=torch.ones(300, 500)), average_of(model))
    meters = []
    real = streams._Shown
    monkeypatch.setattr(streams, "_Shown", lambda *of: meters.append(real(*of)) or meters[-1])
    ckptool(*(arg.format(path) for arg in args))
    (meter,) = meters
    assert meter.done > 250_000
    assert abs(meter.done - meter.total) < 0.01 * meter.total


def test_progress_is_not_shown_elsewhere(slow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with streams.progressing("copying") as advance:
        for _ in range(4):
            advance(1 << 20)
    assert sys.stderr.getvalue() == ""


def test_progress_of_something_quick_is_not_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with streams.progressing("copying") as advance:
        advance(1 << 20)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize(("given", "seen"), [(None, "1"), ("4", "4")])
def test_the_process_asks_for_no_threads_of_blas(given, seen, tmp_path):
    """numpy starts them on being imported; who wants some has them."""
    code = "import os; from ckptool import cli; cli.main = lambda args: (print(os.environ"
    code += "['OPENBLAS_NUM_THREADS']), 0)[1]; cli.run()"
    env = {k: v for k, v in environment().items() if k != "OPENBLAS_NUM_THREADS"}
    env |= {"OPENBLAS_NUM_THREADS": given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{seen}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize(("stream", "code"), [("> /dev/full", 2), (">&-", 2), ("", 0)])
def test_the_version_that_cannot_be_told_ends_with_an_error(stream, code):
    told = subprocess.run(
        ["sh", "-c", f'"$0" -m ckptool --version {stream}', sys.executable],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == code
    assert "Traceback" not in told.stderr
    assert "bug" not in told.stderr

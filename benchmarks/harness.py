"""Measures commands against each other: fresh processes, taken in turn, judged by ratios.

Seconds depend on the machine and on what else it does; the ratio of two programs that took turns
on the same files in the same minute depends on the programs. So nothing here is a number of
seconds to stay below.

* A **contender** is a command line. Its time runs from before the process is made until it has
  been waited for, the interpreter's start included; its peak is ``ru_maxrss`` of ``wait4``.
* On a machine that others use too, ``--cpu`` takes the time of the processor (user and system) in
  place of that: it varies less, and does not see what several cores do at once.
* A **question** compares two contenders and has a limit for their ratio, and what was predicted
  before anything was measured.
* Every round runs each contender once, in reversed order every other round, so that a slow minute
  meets all of them; the first round is not counted (bytecode, page cache).
* Before each run its inputs are read once, so that all find them in the page cache, and its output
  is removed and the disk brought to rest, so that nobody pays for what another wrote.

This process must stay small, and so never imports torch: Linux gives a child the peak of the
process that it was forked from.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent)}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
ELSEWHERE = tempfile.gettempdir()  # not here, where our own pyproject.toml would be parsed
MIB = 1 << 20


@dataclass(frozen=True)
class Contender:
    """A command line that does the work in question."""

    name: str
    command: tuple[str, ...]
    reads: tuple[Path, ...] = ()  # read into the page cache before each run
    writes: Path | None = None  # removed before each run; of a folder, what is in it
    cold: tuple[Path, ...] = ()  # dropped from the page cache before each run


@dataclass(frozen=True)
class Question:
    """Whether one contender is fast and small enough beside another."""

    text: str
    ours: Contender
    theirs: Contender
    limit: float  # of our seconds to theirs
    predicted: str
    peak_limit: int | None = None  # MiB


@dataclass(frozen=True)
class Run:
    """One process from beginning to end."""

    seconds: float  # on the clock, or of the processor
    peak: float  # MiB


@dataclass(frozen=True)
class Answer:
    """What was measured for a question."""

    question: Question
    ours: tuple[Run, ...]
    theirs: tuple[Run, ...]

    @property
    def ratio(self) -> float:
        """Of the medians: what the limit is held against."""
        return _median(self.ours) / _median(self.theirs)

    @property
    def best_ratio(self) -> float:
        """Of the fastest runs, which a busy machine disturbs least."""
        return _fastest(self.ours) / _fastest(self.theirs)

    @property
    def peak(self) -> float:
        """Our largest, in MiB."""
        return max(run.peak for run in self.ours)

    @property
    def holds(self) -> bool:
        """Whether both limits are kept."""
        small = self.question.peak_limit is None or self.peak <= self.question.peak_limit
        return small and self.ratio <= self.question.limit


def ckptool(*args: str | Path) -> tuple[str, ...]:
    """The command line of this repository's ckptool."""
    return (sys.executable, "-m", "ckptool", *map(str, args))


def python(code: str, *args: str | Path) -> tuple[str, ...]:
    """The command line of a plain script."""
    return (sys.executable, "-c", code, *map(str, args))


def make(kind: str, path: Path) -> Path:
    """A checkpoint of ``make_checkpoints.py`` at ``path``, made in a process of its own."""
    command = [sys.executable, str(HERE / "make_checkpoints.py"), kind, str(path)]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return path


# ------------------------------------------------------------------------------------------ running


def arguments(description: str | None, runs: int, gb: float | None = None) -> argparse.Namespace:
    """The options that every benchmark has; with ``gb`` that of the size of its files."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dir", type=Path, help="folder for the files (several GB), e.g. a disk")
    parser.add_argument(
        "--runs", type=int, default=runs, help="counted rounds (default %(default)s)"
    )
    if gb is not None:
        parser.add_argument("--gb", type=float, default=gb, help="size (default %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="time of the processor, not the clock's")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is exceeded")
    return parser.parse_args()


@contextmanager
def workplace(folder: Path | None) -> Iterator[Path]:
    """A new folder in ``folder``, removed with all that is in it."""
    made = Path(tempfile.mkdtemp(prefix="ckptool-benchmark-", dir=folder)).resolve()
    try:
        yield made
    finally:
        shutil.rmtree(made)


def answer(questions: Sequence[Question], options: argparse.Namespace) -> int:
    """Print the predictions, measure, print the table; the exit code."""
    for question in questions:
        print(f"{question.text}\n  predicted: {question.predicted}", flush=True)
    before = os.getloadavg()[0]
    measured = _take_turns(questions, options.runs, of_processor=options.cpu)
    answers = [Answer(q, measured[q.ours.name], measured[q.theirs.name]) for q in questions]
    print(f"\nload {before:.2f} before, {os.getloadavg()[0]:.2f} after; {options.runs} rounds\n")
    print(table(answers), flush=True)
    return int(options.check and not all(each.holds for each in answers))


def _take_turns(
    questions: Sequence[Question], runs: int, *, of_processor: bool
) -> dict[str, tuple[Run, ...]]:
    contenders = {c.name: c for q in questions for c in (q.ours, q.theirs)}
    measured: dict[str, list[Run]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        order = list(contenders.values())
        for contender in order if turn % 2 else reversed(order):
            one = run(contender, of_processor=of_processor)
            if turn:
                measured[contender.name].append(one)
    return {name: tuple(counted) for name, counted in measured.items()}


def run(contender: Contender, *, of_processor: bool = False) -> Run:
    """One run, after its output is gone, the disk at rest and its inputs in memory.

    Raises:
        SystemExit: the command failed.
    """
    if contender.writes:
        _remove(contender.writes)
        os.sync()
    for path in contender.reads:
        _warm(path)
    for path in contender.cold:
        _drop(path)
    begun = time.perf_counter()
    process = subprocess.Popen(
        contender.command, stdout=subprocess.DEVNULL, env=ENVIRONMENT, cwd=ELSEWHERE
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{contender.name}: exit code {process.returncode}")
    if contender.writes:
        _remove(contender.writes)
    if of_processor:
        seconds = usage.ru_utime + usage.ru_stime
    return Run(seconds, usage.ru_maxrss * 1024 / MIB)


def _remove(output: Path) -> None:
    for path in output.iterdir() if output.is_dir() else (output,):
        path.unlink(missing_ok=True)


def _warm(path: Path) -> None:
    buffer = memoryview(bytearray(MIB))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _drop(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -------------------------------------------------------------------------------------------- table

HEADS = ("question", "ours", "theirs", "ratio", "of best", "limit", "peak", "limit", "theirs", "")


def table(answers: Sequence[Answer]) -> str:
    """Medians in seconds, the ratio and our largest peak, each beside its limit."""
    rows = [HEADS, *map(_cells, answers)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cells(one: Answer) -> tuple[str, ...]:
    question = one.question
    return (
        question.text,
        f"{_median(one.ours):.3f} s",
        f"{_median(one.theirs):.3f} s",
        f"{one.ratio:.3f}",
        f"{one.best_ratio:.3f}",
        f"{question.limit:g}",
        f"{one.peak:.1f} MiB",
        f"{question.peak_limit} MiB" if question.peak_limit else "",
        f"{max(run.peak for run in one.theirs):.1f} MiB",
        "" if one.holds else "EXCEEDED",
    )


def _median(runs: Sequence[Run]) -> float:
    return median(run.seconds for run in runs)


def _fastest(runs: Sequence[Run]) -> float:
    return min(run.seconds for run in runs)

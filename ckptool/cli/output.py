"""Output of answers and progress, the settings from the environment, and the place in torchrun.

Every process of torchrun does its part and ends with the same exit code; only the first one prints.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ckptool.errors import UsageError
from ckptool.process.allowance import stop
from ckptool.process.progress import Meter, Progress
from ckptool.process.signals import undone_at_end
from ckptool.records import NamedTuple, replace
from ckptool.render.outputs import MARKUP, TEXTS, outputs_of, rendered
from ckptool.sources.urls import is_url

if TYPE_CHECKING:
    from ckptool.cli.config import Settings
    from ckptool.contents.selection import Operand
    from ckptool.process.ranks import Ranks


class ExitCode(IntEnum):
    """The exit code of every command; an interrupted one ends with 130."""

    DONE = 0  # done; verified; no differences
    NO = 1  # the answer is no: a check failed, or there are differences
    CANNOT = 2  # it could not be done


PROGRESS_AFTER = 1.0  # seconds
PROGRESS_EVERY = 0.1


def answer(
    reports: Sequence[Any], output: str, *, color: str, stream: TextIO | None = None
) -> None:
    """Print the reports of a command: as text, on stdout or ``stream``, or as one document."""
    if output in TEXTS:
        from ckptool.render.terminal import show

        show(reports, stream or sys.stdout, used_color(color), output)
    else:
        write_document(rendered(reports, output), output)


def output_for(report: str, asked: str, *, json: bool) -> str:
    """Return the name of the output for a class of reports; ``--json`` means ``json``.

    Raises:
        UsageError: the reports have no such output, or two outputs are asked for.
    """
    if json and asked not in {"text", "json"}:
        raise UsageError(
            f"--json and --format {asked} are two forms of one answer", hint="leave one out"
        )
    output = "json" if json else asked
    known = outputs_of(report)
    if output not in known:
        others = f"; {OF_ONE[report]}" if report in OF_ONE else ""
        raise UsageError(
            f"this command has no --format {output}", hint=f"it has: {', '.join(known)}{others}"
        )
    return output


# Class of a report of many checkpoints -> where the forms are that it lacks.
OF_ONE = {"RunDiffReport": "two checkpoints have more: ckptool diff RUN/FILE RUN/FILE"}


@contextlib.contextmanager
def concluding() -> Iterator[None]:
    """Flush an answer, and ignore that its reader goes away: the exit code is the verdict."""
    with contextlib.suppress(BrokenPipeError):
        yield
        sys.stdout.flush()


def write_document(text: str, name: str) -> None:
    """Print a document; markup gets character references where the stream is not UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    if name in MARKUP and encoding not in {"utf-8", "utf8"}:
        text = text.encode("ascii", "xmlcharrefreplace").decode("ascii")
    stop()  # nothing comes behind a part of a document
    sys.stdout.write(text + "\n")


def report_files(report: str, asked: Iterable[str]) -> list[tuple[str, Path]]:
    """Return the output and the file of each ``--report FORMAT=FILE``.

    Raises:
        UsageError: an option is not of that form, or the reports have no such output.
    """
    files = []
    for text in asked:
        name, _, file = text.partition("=")
        known = outputs_of(report)
        if name not in known or not file:
            hint = f"--report FORMAT=FILE, with one of: {', '.join(known)}"
            raise UsageError(f"cannot write a report to {text!r}", hint=hint)
        files.append((name, Path(file)))
    return files


def write_reports(
    files: Iterable[tuple[str, Path]], reports: Sequence[Any], *, force: bool
) -> None:
    """Write the reports to each file, in the output that belongs to it."""
    from ckptool.commands.report_files import write_report_file

    for name, path in files:
        write_report_file(path, rendered(reports, name), force=force)


class Part(NamedTuple):
    """A part of the work, and the bytes that were done and announced before it."""

    at: int
    of: int
    done: int
    total: int


class _Shown(Meter):
    """A line on stderr with bytes, rate and the time that is left."""

    def __init__(self, verb: str, far: Sequence[str] = ()) -> None:
        self.verb, self.far = verb, far
        self.done = self.total = 0
        self.part = Part(1, 1, 0, 0)
        self.begun, self.shown = time.monotonic(), 0.0
        self.is_terminal = sys.stderr.isatty()

    def expect(self, nbytes: int) -> None:
        self.total += nbytes
        if self.far and nbytes >= MIB:
            sys.stderr.write(f"note: {self.verb} {nbytes / MIB:,.0f} MiB over the network\n")

    def begin(self, at: int, count: int) -> None:
        self.part = Part(at, count, self.done, self.total)

    def __call__(self, nbytes: int) -> None:
        self.done += nbytes
        now = time.monotonic()
        is_due = now - self.begun > PROGRESS_AFTER and now - self.shown > PROGRESS_EVERY
        if self.is_terminal and is_due:
            self.shown = now
            room = columns_of(sys.stderr) - len(f"{self.verb}: ")
            texts = self._texts(now - self.begun)
            text = next((text for text in texts if len(text) <= room), texts[-1])
            sys.stderr.write(f"\r{self.verb}: {text}\x1b[K")
            sys.stderr.flush()

    def _texts(self, seconds: float) -> Sequence[str]:
        """Return what is shown, the longest text first."""
        at, count, before, announced = self.part
        done, speed = f"{self.done / MIB:,.0f} MiB", f"{self.done / seconds / MIB:,.0f} MiB/s"
        own, total = self.done - before, self.total - announced
        if not self.done or own > total:  # a part of the work was not announced
            return f"{done}, {speed} ", f"{done} "
        part = (at - 1 + (own / total if total else 0)) / count  # they are much alike
        share, left = f"{part:.0%}", _time(seconds * (1 - part) / part) if part else "?"
        whole = f" of {self.total / MIB:,.0f} MiB" if count == 1 else f", {at:,} of {count:,} files"
        return (
            f"{share}, {done}{whole}, {speed}, {left} left ",
            f"{share}, {speed}, {left} left ",
            f"{share} ",
        )

    def wipe(self) -> None:
        """Remove the line."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


MIB = 1 << 20


def columns_of(stream: TextIO) -> int:
    """Return the width of a terminal; one that states none has 80 columns."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def _time(seconds: float) -> str:
    """Return ``42 s``, ``3:05`` or ``1:00:00``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if whole < 60:
        return f"{whole} s"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


@contextlib.contextmanager
def progressing(verb: str, operands: Iterable[str | None] = ()) -> Iterator[Progress]:
    """Show share, bytes, rate and time left on a terminal, once the work takes over a second.

    Where one of the operands is a URL, say before how many bytes will be transferred.
    """
    shown = _Shown(verb, [text for text in operands if text is not None and is_url(text)])
    with undone_at_end(shown.wipe):
        yield shown


def used_color(asked: str) -> str:
    """Return ``--color``; FORCE_COLOR colours pipes too, unless the option or NO_COLOR is given."""
    forced = os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR")
    return "always" if asked == "auto" and forced else asked


def place_named(text: str, ema: str | None) -> Operand:
    """Return the path and the key path of the weights, by ``PATH#ADDRESS`` or ``--ema ADDRESS``.

    Raises:
        UsageError: both are given.
    """
    from ckptool.contents.selection import parse_operand

    operand = parse_operand(text)
    if ema is None or operand.address is None:
        return operand._replace(address=operand.address if ema is None else ema)
    raise UsageError(
        "the weights are named twice, behind the # and by --ema",
        path=operand.path,
        hint="leave one out",
    )


def with_config(report: Any, settings: Settings) -> Any:
    """Return a report that states the configuration files that were used, or ignored."""
    return replace(report, config=(*settings.foreign, *settings.own) or None)


def tell_config(settings: Settings) -> None:
    """Say on stderr which settings are in use that nobody typed, and which were ignored."""
    from ckptool.render.text import printable

    for each in settings.foreign:
        path = printable(each.path)
        if each.ignored:
            sys.stderr.write(
                f"note: {path} lies in the directory of a checkpoint, so it may not decide on "
                f"{', '.join(each.ignored)}: use --config {path} if it is yours\n"
            )
    for each in settings.loose:
        sys.stderr.write(f"note: {printable(each.path)} decides on {', '.join(each.used)}\n")


def tell_interrupt() -> None:
    """Say on a terminal that Ctrl-C ended the run; a script has the exit code."""
    if own_place().speaks and sys.stderr.isatty():
        sys.stderr.write("interrupted: no unfinished file is left\n")
        sys.stderr.flush()


def source_date() -> float | None:
    """Return the time set for reproducible builds (https://reproducible-builds.org/specs)."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    is_date = given.isascii() and given.isdigit() and len(given) < 12  # digits, up to year 5138
    return float(given) if is_date else None


# ----------------------------------------------------------------------------------------- torchrun


class Place(NamedTuple):
    """The place of this process among those of torchrun."""

    rank: int = 0
    world: int = 1  # number of processes
    local: int = 0  # rank on this machine

    @property
    def speaks(self) -> bool:
        """True for the process that prints and writes the answer."""
        return self.rank == 0


def own_place() -> Place:
    """Return the place of this process, from the environment."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # others set the rest, but no process waits for us
        return Place()
    rank, world, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, world, local)


def joined(place: Place) -> AbstractContextManager[Ranks]:
    """Join this process with the others, if there are any."""
    from ckptool.process.ranks import Ranks, joined_ranks

    if place.world == 1:
        return nullcontext(Ranks())
    return joined_ranks(place.rank, place.world)

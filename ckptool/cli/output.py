"""Where answers and progress go, and what the configuration adds."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptool.errors import UsageError
from ckptool.interrupts import undone_at_end
from ckptool.render.as_json import to_json

if TYPE_CHECKING:
    from ckptool.layouts import Layouts

PROGRESS_AFTER = 1.0  # seconds
PROGRESS_EVERY = 0.1


def answer(report: Any, *, json: bool, color: str) -> None:
    """Print a report, or several: text, or one JSON document."""
    if json:
        sys.stdout.write(to_json(report) + "\n")
        return
    from ckptool.render.terminal import show

    reports = report if isinstance(report, list) else [report]
    for i, one in enumerate(reports):
        if i:
            sys.stdout.write("\n")
        show(one, sys.stdout, used_color(color))


def answer_as(name: str, reports: list[Any], *, color: str) -> None:
    """Print one or more reports of one type as text, or in a format of other programs."""
    if name == "text":
        from ckptool.render.terminal import show

        show(reports if len(reports) > 1 else reports[0], sys.stdout, used_color(color))
    else:
        from ckptool.render.formats import rendered

        sys.stdout.write(rendered(reports, name) + "\n")


def report_files(asked: list[str] | None) -> list[tuple[str, Path]]:
    """``FORMAT=FILE`` of each ``--report``.

    Raises:
        UsageError: it is not of that form, or there is no such format.
    """
    return [_report_file(text) for text in asked or ()]


def _report_file(text: str) -> tuple[str, Path]:
    from ckptool.render.formats import FORMATS

    name, _, file = text.partition("=")
    if name not in FORMATS or not file:
        example = f"--report FORMAT=FILE, with one of: {', '.join(FORMATS)}"
        raise UsageError(f"cannot write a report to {text!r}", hint=example)
    return name, Path(file)


def write_reports(files: list[tuple[str, Path]], reports: list[Any]) -> None:
    """Write the reports to each file, in its format."""
    for name, path in files:
        from ckptool.render.formats import rendered

        path.write_text(rendered(reports, name) + "\n", encoding="utf-8")


@contextlib.contextmanager
def progressing(verb: str) -> Iterator[Callable[[int], None]]:
    """Bytes and rate on stderr, on a terminal only, once something takes over a second."""
    done, begun, shown = 0, time.monotonic(), 0.0
    is_terminal = sys.stderr.isatty()

    def advance(nbytes: int) -> None:
        nonlocal done, shown
        done += nbytes
        now = time.monotonic()
        if is_terminal and now - begun > PROGRESS_AFTER and now - shown > PROGRESS_EVERY:
            shown = now
            rate = done / (now - begun) / 2**20
            sys.stderr.write(f"\r{verb}: {done / 2**20:,.0f} MiB, {rate:,.0f} MiB/s ")
            sys.stderr.flush()

    def wipe() -> None:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    with undone_at_end(wipe):
        yield advance


def used_color(asked: str) -> str:
    """FORCE_COLOR colours pipes too, unless an option or NO_COLOR says otherwise."""
    forced = os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR")
    return "always" if asked == "auto" and forced else asked


def house_verify_options() -> dict[str, Any]:
    """What the configuration at or above the working directory sets for ``verify``."""
    from ckptool.config import VERIFY_OPTIONS, read_settings

    return dict(read_settings(Path.cwd(), "verify", VERIFY_OPTIONS))


def house_layouts() -> Layouts:
    """Rows of the configuration at or above the working directory."""
    from ckptool.config import read_layouts

    return read_layouts(Path.cwd())


def source_date() -> float | None:
    """The time that reproducible builds ask for (https://reproducible-builds.org/specs)."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    is_date = given.isascii() and given.isdigit() and len(given) < 12  # digits, up to year 5138
    return float(given) if is_date else None

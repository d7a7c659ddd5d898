"""The shared end of the commands that write: settings, progress, and the answer in a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckptool.cli.config import read_settings
from ckptool.cli.output import (
    answer,
    output_for,
    progressing,
    source_date,
    tell_config,
    with_config,
)


def write_and_answer(
    command: str,
    report: str,
    paths: Sequence[str],
    writing: Callable[..., Any],
    *,
    verb: str,
    config: Path | None,
    form: str,
    json: bool,
    color: str,
) -> Any:
    """Run what a command writes, under the settings of its configuration, and print its report.

    Args:
        command: name of the command, as in a configuration.
        report: class of the report.
        paths: operands, beside which a configuration may lie.
        writing: the function of the library, bound to all but ``progress``, ``layouts`` and
            ``made_at``.
        verb: what the line of progress says.
        config: ``--config``.
        form: ``--format``.
        json: ``--json``.
        color: ``--color``.

    Returns:
        The report.

    Raises:
        UsageError: the report has no such output.
        CkptError: what ``writing`` raises.
    """
    output = output_for(report, form, json=json)
    settings = read_settings(command, paths, config)
    tell_config(settings)
    with progressing(verb) as progress:
        made = writing(progress=progress, layouts=settings.layouts, made_at=source_date())
    answer([with_config(made, settings)], output, color=color)
    return made

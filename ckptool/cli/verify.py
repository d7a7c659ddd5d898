"""The options of ``ckptool verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ckptool.cli.options import ColorOption, FormatOption, JsonOption, ReportsOption
from ckptool.cli.output import (
    answer_as,
    house_layouts,
    progressing,
    report_files,
    write_reports,
)
from ckptool.commands.verify import Request, chosen_rules, expanded, verify_file

NO = 1  # the exit code of a verdict that something failed


def command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Checkpoints, or a run's folder.")
    ],
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="What must hold: ema, resume, finite, safe, …"),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE,...", help="Only these rules: CK404, or CK4 for a family."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="RULE,...", help="Not these rules.")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict/--no-strict", help="Warnings fail.")
    ] = None,
    bytes_: Annotated[
        bool | None, typer.Option("--bytes/--no-bytes", help="Read all bytes: checksums.")
    ] = None,
    values: Annotated[
        bool | None, typer.Option("--values/--no-values", help="Read all values: finite, constant.")
    ] = None,
    format_: FormatOption = "text",
    report: ReportsOption = None,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Check a checkpoint: whole, safe, finite, averaged, ready to resume. Exit code 1: it is not."""
    files = report_files(report)
    reports: list[Any] = []
    with progressing("verifying") as progress:
        chosen = chosen_rules(
            require=_listed(require),
            selected=_listed(select),
            ignored=_listed(ignore),
            strict=bool(strict),
            bytes_=bytes_,
            values=values,
        )
        request = Request(
            chosen, tuple(_listed(require)), layouts=house_layouts(), progress=progress
        )
        reports += [verify_file(path, request) for path in expanded(paths)]
    write_reports(files, reports)
    answer_as("json" if json else format_, reports, color=color)
    if not all(one.ok for one in reports):
        raise typer.Exit(NO)


def _listed(given: list[str] | None) -> list[str]:
    """Names given one by one, or joined by commas."""
    return [name.strip() for text in given or () for name in text.split(",") if name.strip()]

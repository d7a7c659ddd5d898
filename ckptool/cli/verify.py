"""The options of ``ckptool verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckptool.cli.options import ColorOption, FormatOption, JsonOption, ReportsOption
from ckptool.cli.output import (
    answer_as,
    house_layouts,
    house_verify_options,
    progressing,
    report_files,
    write_reports,
)
from ckptool.cli.torchrun import joined, own_place
from ckptool.commands.choosing import best_by, latest_valid
from ckptool.commands.like import read_like
from ckptool.commands.verify import Request, chosen_rules, expanded, verify_file
from ckptool.errors import UsageError
from ckptool.verify_reports import ChoiceReport, VerifyReport

NO = 1  # the exit code of a verdict that something failed

Names = list[str] | None


def command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Checkpoints, or a run's folder.")
    ],
    require: Annotated[
        Names,
        typer.Option(
            metavar="NAME,...",
            help="What must hold: ema, resume, finite, safe, intact, loads, provenance.",
        ),
    ] = None,
    select: Annotated[
        Names, typer.Option(metavar="RULE,...", help="Only these rules: CK404; CK4 is a family.")
    ] = None,
    ignore: Annotated[Names, typer.Option(metavar="RULE,...", help="Not these rules.")] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="OPERAND", help="Names and shapes of the model that is to load it."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="OPERAND", help="What these weights are: its EMA, or a place in it."),
    ] = None,
    bytes_: Annotated[
        bool | None, typer.Option("--bytes/--no-bytes", help="Read all bytes: checksums.")
    ] = None,
    values: Annotated[
        bool | None, typer.Option("--values/--no-values", help="Read all values: NaN, constants.")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict/--no-strict", help="Warnings fail.")
    ] = None,
    latest: Annotated[
        bool, typer.Option("--latest-valid", help="Print the newest checkpoint that passes.")
    ] = False,
    best: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Print the best checkpoint that passes.")
    ] = None,
    form: FormatOption = "text",
    report: ReportsOption = None,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Check a checkpoint: whole, safe, finite, averaged, ready to resume. 1: it is not."""
    files = report_files(report)
    given = house_verify_options() | {
        name: value
        for name, value in {
            "require": _listed(require),
            "select": _listed(select),
            "ignore": _listed(ignore),
            "strict": strict,
            "bytes": bytes_,
            "values": values,
        }.items()
        if value is not None
    }
    place = own_place()
    with joined(place) as ranks, progressing("verifying") as progress:
        layouts = house_layouts()
        request = Request(
            chosen_rules(given, like=like is not None, against=against is not None),
            tuple(given.get("require", ())),
            like=read_like(like, layouts) if like else None,
            against=against,
            layouts=layouts,
            progress=progress,
            ranks=ranks,
        )
        answers = _answers(paths, request, latest=latest, best=best)
    if place.speaks:
        write_reports(files, answers)
        answer_as("json" if json else form, answers, color=color)
    if not all(map(_is_good, answers)):
        raise typer.Exit(NO)


def _answers(
    paths: list[Path], request: Request, *, latest: bool, best: str | None
) -> list[ChoiceReport] | list[VerifyReport]:
    if latest and best is not None:
        raise UsageError("--latest-valid and --best choose by different rules", hint="give one")
    if latest:
        return [latest_valid(paths, request)]
    if best is not None:
        return [best_by(best, paths, request)]
    return [verify_file(path, request) for path in expanded(paths)]


def _is_good(report: ChoiceReport | VerifyReport) -> bool:
    return report.path is not None if isinstance(report, ChoiceReport) else report.ok


def _listed(given: Names) -> Names:
    """Names given one by one, or joined by commas; None where the option was not given."""
    if given is None:
        return None
    return [name.strip() for text in given for name in text.split(",") if name.strip()]

"""The options of ``ckptool diff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ckptool.cli.options import ColorOption, JsonOption
from ckptool.cli.output import house_layouts, progressing, used_color
from ckptool.cli.torchrun import joined, own_place
from ckptool.commands.diff import DiffOptions, diff
from ckptool.comparison.settings import FORMS, merge_selection, merge_tolerances
from ckptool.config import read_settings
from ckptool.diff_reports import DiffReport
from ckptool.errors import UsageError
from ckptool.render.diff_formats import DOCUMENTS, PAGES

Operand = Annotated[
    str, typer.Argument(help="PATH, PATH#ADDRESS, PATH#@ema or PATH#@model; or digests as JSON.")
]
Globs = list[str]
Format = Literal["text", "json", "md", "github", "junit", "html"]


def command(
    a: Operand,
    b: Operand,
    atol: Annotated[
        float | None,
        typer.Option(metavar="X", help="Absolute difference that is none; integers are exact."),
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(metavar="X", help="Difference relative to the larger value.")
    ] = None,
    ulp: Annotated[
        int | None, typer.Option(metavar="N", help="Floating-point steps that are none.")
    ] = None,
    tolerance: Annotated[
        Globs | None,
        typer.Option(
            metavar="GLOB=ATOL[,RTOL]", help="For these addresses; the most specific glob wins."
        ),
    ] = None,
    match: Annotated[Globs | None, typer.Option(metavar="GLOB", help="Only these.")] = None,
    ignore: Annotated[Globs | None, typer.Option(metavar="GLOB", help="Not these.")] = None,
    renames: Annotated[
        Globs | None,
        typer.Option("--map", metavar="REGEX=REPL", help="Rename on both sides before pairing."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Strides, sharing, device, gradients, versions count too."),
    ] = False,
    any_dtype: Annotated[
        bool, typer.Option("--any-dtype", help="Values count, not the types they are stored in.")
    ] = False,
    stat: Annotated[bool, typer.Option("--stat", help="Only the summary.")] = False,
    name_only: Annotated[
        bool, typer.Option("--name-only", help="Only the addresses that differ.")
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            metavar="cpu|cuda[:N]", help="Where to compute; a GPU pays from several GB on."
        ),
    ] = "cpu",
    format_: Annotated[Format, typer.Option("--format", help="Form of the report.")] = "text",
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Compare two checkpoints: exit code 0 when they are equal, 1 when they differ."""
    if stat and name_only:
        raise UsageError("--stat and --name-only do not go together")
    place = own_place()
    settings = read_settings(Path.cwd(), "diff", FORMS)
    options = DiffOptions(
        merge_selection(settings, match=match or (), ignore=ignore or (), renames=renames or ()),
        merge_tolerances(settings, atol=atol, rtol=rtol, ulp=ulp, special=tolerance or ()),
        strict or bool(settings.get("strict")),
        any_dtype or bool(settings.get("any_dtype")),
        f"cuda:{place.local}" if device == "cuda" and place.world > 1 else device,
    )
    with joined(place) as ranks, progressing("comparing") as progress:
        report = diff(a, b, options, progress=progress, layouts=house_layouts(), ranks=ranks)
    if place.speaks:
        extent = "stat" if stat else "names" if name_only else "full"
        _show(report, "json" if json else format_, extent, color)
    if not report.equal:
        raise typer.Exit(1)


def _show(report: DiffReport, form: str, extent: str, color: str) -> None:
    if form in DOCUMENTS:
        sys.stdout.write(DOCUMENTS[form](report) + "\n")
        return
    from ckptool.render.terminal import show_page

    show_page(PAGES[extent](report), sys.stdout, used_color(color))

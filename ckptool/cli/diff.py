"""The options of ``ckptool diff``."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from ckptool.cli.options import ColorOption, JsonOption
from ckptool.cli.output import house_layouts, progressing, used_color
from ckptool.commands.diff import DiffOptions, diff
from ckptool.comparison.engine import Ranks
from ckptool.comparison.settings import FORMS, merge_selection, merge_tolerances
from ckptool.config import read_settings
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
        float | None, typer.Option(metavar="X", help="Absolute difference that is none.")
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
    device: Annotated[str, typer.Option(metavar="cpu|cuda[:N]", help="Where to compute.")] = "cpu",
    format_: Annotated[Format, typer.Option("--format", help="Form of the report.")] = "text",
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Compare two checkpoints: exit code 0 when they are equal, 1 when they differ."""
    if stat and name_only:
        raise UsageError("--stat and --name-only do not go together")
    rank, count, local = _place()
    settings = read_settings(Path.cwd(), "diff", FORMS)
    options = DiffOptions(
        merge_selection(settings, match=match or (), ignore=ignore or (), renames=renames or ()),
        merge_tolerances(settings, atol=atol, rtol=rtol, ulp=ulp, special=tolerance or ()),
        strict or bool(settings.get("strict")),
        any_dtype or bool(settings.get("any_dtype")),
        f"cuda:{local}" if device == "cuda" and count > 1 else device,
    )
    with _ranks(rank, count) as ranks, progressing("comparing") as progress:
        report = diff(a, b, options, progress=progress, layouts=house_layouts(), ranks=ranks)
    if rank:
        return  # the first process speaks for all
    wanted = "json" if json else format_
    if wanted in DOCUMENTS:
        sys.stdout.write(DOCUMENTS[wanted](report) + "\n")
    else:
        from ckptool.render.terminal import show_page

        page = PAGES["stat" if stat else "names" if name_only else "full"](report)
        show_page(page, sys.stdout, used_color(color))
    if not report.equal:
        raise typer.Exit(1)


def _place() -> tuple[int, int, int]:
    """(rank, how many there are, rank on this machine), as torchrun tells each process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # others set the rest, and nobody waits for us
        return 0, 1, 0
    rank, count, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return rank, count, local


def _ranks(rank: int, count: int) -> AbstractContextManager[Ranks]:
    if count == 1:
        return nullcontext(Ranks())
    from ckptool.comparison.ranks import joined_ranks

    return joined_ranks(rank, count)

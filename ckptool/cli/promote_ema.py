"""The options of ``ckptool promote-ema``."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptool.cli.options import (
    ColorOption,
    DryRunOption,
    EmaOption,
    ForceOption,
    JsonOption,
    ModelOption,
    PathOperand,
)
from ckptool.cli.output import answer, house_layouts, progressing, source_date
from ckptool.commands.promote_ema import promote_ema


def command(
    path: PathOperand,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="The file to write, in PATH's format; a folder takes PATH's name in it.",
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Replace PATH itself, when the copy is whole and checked."),
    ] = False,
    backup: Annotated[
        bool, typer.Option("--backup", help="With --in-place: keep the replaced file as PATH.bak.")
    ] = False,
    ema: EmaOption = None,
    model: ModelOption = None,
    allow_shared: Annotated[
        bool,
        typer.Option(
            "--allow-shared", help="Also where tensors elsewhere view the bytes that change."
        ),
    ] = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Put the averaged weights into the model's own slot, all else untouched.

    Writes a copy, or with --in-place replaces the file by one. The optimizer's state still belongs
    to the raw weights: resume training from the original.
    """
    with progressing("promoting") as progress:
        report = promote_ema(
            path,
            output,
            in_place=in_place,
            backup=backup,
            ema=ema,
            model=model,
            allow_shared=allow_shared,
            force=force,
            dry_run=dry_run,
            progress=progress,
            layouts=house_layouts(),
            made_at=source_date(),
        )
    answer(report, json=json, color=color)

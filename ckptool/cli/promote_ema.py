"""The options of ``ckptool promote-ema``."""

from __future__ import annotations

from pathlib import Path
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
from ckptool.cli.output import answer, house_layouts, progressing
from ckptool.commands.promote_ema import promote_ema


def command(
    path: PathOperand,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="The file to write.")
    ],
    ema: EmaOption = None,
    model: ModelOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Write a copy whose model slot holds the averaged weights, all else untouched."""
    with progressing("promoting") as progress:
        report = promote_ema(
            path,
            output,
            ema=ema,
            model=model,
            force=force,
            dry_run=dry_run,
            progress=progress,
            layouts=house_layouts(),
        )
    answer(report, json=json, color=color)

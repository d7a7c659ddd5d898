"""The options of ``ckptool extract-ema``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
from ckptool.commands.extract_ema import extract_ema


def command(
    path: PathOperand,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="The suffix chooses the format: .safetensors, or .pt .pth .ckpt .bin for torch. "
            "By default PATH with .ema.safetensors.",
        ),
    ] = None,
    ema: EmaOption = None,
    model: ModelOption = None,
    names: Annotated[
        Literal["model", "bare", "ema"],
        typer.Option(help="Names as in the model's slot, those without wrappers, or as stored."),
    ] = "model",
    wrap: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Put the state dict under this key (torch files)."),
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Write the averaged weights as a file of their own, ready for inference."""
    with progressing("extracting") as progress:
        report = extract_ema(
            path, output, ema=ema, model=model, names=names, wrap=wrap, force=force,
            dry_run=dry_run, progress=progress, layouts=house_layouts(),
            made_at=source_date(),
        )  # fmt: skip
    answer(report, json=json, color=color)

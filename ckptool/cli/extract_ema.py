"""The options of ``ckptool extract-ema``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ckptool.cli.options import (
    ColorOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    ModelOption,
    OperandArgument,
)
from ckptool.cli.output import answer, house_layouts, progressing, source_date
from ckptool.commands.extract_ema import extract_ema
from ckptool.errors import UsageError
from ckptool.selection import Operand, parse_operand


def command(
    path: OperandArgument,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="The suffix chooses the format: .safetensors, or .pt .pth .ckpt .bin for torch. "
            "A folder takes PATH's name in it; by default PATH with .ema.safetensors.",
        ),
    ] = None,
    ema: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Take this table: a/b, a/prefix*, @model for the model's own, as it stands.",
        ),
    ] = None,
    model: ModelOption = None,
    names: Annotated[
        Literal["model", "bare", "ema"],
        typer.Option(help="Names as in the model's slot, those without wrappers, or as stored."),
    ] = "model",
    strip_prefix: Annotated[
        str | None, typer.Option(metavar="P", help="Take this prefix off the names, too.")
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Write only the tensors whose name fits; repeatable."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="D", help="Cast floating tensors: float16, bf16, float8_e4m3fn …"),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Several files of at most 5GB, say, and their index (safetensors).",
        ),
    ] = None,
    ties: Annotated[
        Literal["once", "each"],
        typer.Option(help="Tied weights in safetensors: under one name and noted, or under each."),
    ] = "once",
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
    operand = operand_of(path, ema)
    with progressing("extracting") as progress:
        report = extract_ema(
            operand.path, output, ema=operand.address, model=model, names=names,
            strip=strip_prefix, match=match or (), dtype=dtype, ties=ties, wrap=wrap,
            max_shard_size=max_shard_size, force=force, dry_run=dry_run, progress=progress,
            layouts=house_layouts(), made_at=source_date(),
        )  # fmt: skip
    answer(report, json=json, color=color)


def operand_of(text: str, ema: str | None) -> Operand:
    """``PATH#ADDRESS`` names the weights as ``--ema ADDRESS`` does.

    Raises:
        UsageError: both do.
    """
    operand = parse_operand(text)
    if ema is None or operand.address is None:
        return operand._replace(address=operand.address if ema is None else ema)
    raise UsageError(
        "the weights are named twice, behind the # and by --ema",
        path=operand.path,
        hint="leave one out",
    )

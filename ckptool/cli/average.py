"""The options of ``ckptool average``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ckptool.cli import options as shared
from ckptool.cli.config import read_settings
from ckptool.cli.output import (
    answer,
    output_for,
    progressing,
    source_date,
    tell_config,
    with_config,
)
from ckptool.commands.average import AverageOptions, average


def command(
    paths: shared.Operands,
    output: shared.Output,
    only: Annotated[
        Literal["model", "ema"] | None,
        typer.Option(
            "--only",
            metavar="ROLE",
            help="Average the model's own weights (model) or the EMA weights (ema) of each "
            "checkpoint.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="Weigh the checkpoints, in the order in which they are named; the default is a "
            "plain mean.",
        ),
    ] = None,
    ema_decay: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Weigh the checkpoints as an EMA with this decay per training step would.",
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Take only the newest N checkpoints, by their step."),
    ] = None,
    buffers: Annotated[
        Literal["average", "newest"],
        typer.Option(
            metavar="SOURCE",
            help="Average batch statistics (average), or take those of the newest checkpoint "
            "(newest).",
        ),
    ] = "average",
    dtype: shared.Dtypes = None,
    max_shard_size: shared.MaxShardSize = None,
    ties: shared.Ties = "once",
    wrap: shared.Wrap = None,
    force: shared.Force = False,
    dry_run: shared.DryRun = False,
    config: shared.Config = None,
    form: shared.Format = "text",
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> None:
    """Write the mean of the same weights in several checkpoints."""
    from ckptool.contents.selection import parse_operand

    output_format = output_for("AverageReport", form, json=json)
    settings = read_settings("average", paths, config)
    tell_config(settings)
    options = AverageOptions(
        role=only, weights=weights, ema_decay=ema_decay, last=last, buffers=buffers,
        dtype=dtype or (), ties=ties, wrap=wrap, max_shard_size=max_shard_size,
        force=force, dry_run=dry_run,
    )  # fmt: skip
    with progressing("averaging") as progress:
        report = average(
            [parse_operand(path) for path in paths],
            output,
            options,
            progress=progress,
            layouts=settings.layouts,
            made_at=source_date(),
        )
    answer([with_config(report, settings)], output_format, color=color)

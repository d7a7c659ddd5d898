"""The options of ``ckptool average``."""

from functools import partial
from typing import Annotated, Literal

from ckptool.cli import options as shared
from ckptool.cli.parameters import Option
from ckptool.cli.writing import write_and_answer
from ckptool.commands.average import average
from ckptool.commands.mixture import AverageOptions
from ckptool.contents.selection import parse_operand


def command(
    paths: shared.Operands,
    output: shared.Output,
    only: Annotated[
        Literal["model", "ema"] | None,
        Option(
            "--only",
            metavar="ROLE",
            help="Average the model's own weights (model) or the EMA weights (ema) of each "
            "checkpoint.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        Option(
            metavar="W,W,...",
            help="Weigh the checkpoints, in the order in which they are named; the default is a "
            "plain mean.",
        ),
    ] = None,
    schedule: Annotated[
        Literal["linear", "cosine", "inverse-sqrt", "minus-sqrt"] | None,
        Option(
            metavar="NAME",
            help="Weigh the checkpoints of a constant learning rate as its decay would: linear, "
            "cosine, inverse-sqrt, minus-sqrt.",
        ),
    ] = None,
    ema_decay: Annotated[
        float | None,
        Option(
            metavar="X",
            help="Weigh the checkpoints as an EMA with this decay per training step would.",
        ),
    ] = None,
    sigma_rel: Annotated[
        float | None,
        Option(
            metavar="X",
            help="Make the EMA of this relative width from the snapshots of others that EDM2 and "
            "ema-pytorch's PostHocEMA save.",
        ),
    ] = None,
    widths: Annotated[
        str | None,
        Option(
            metavar="W,W,...",
            help="Give the relative widths (sigma_rels) of ema-pytorch's tracks, in their order: "
            "the files do not state them.",
        ),
    ] = None,
    between: Annotated[
        bool,
        Option(
            "--between",
            help="Take the mean of all steps between two checkpoints, from the running mean of the "
            "whole run that each holds (icefall's model_avg).",
        ),
    ] = False,
    best: Annotated[
        str | None,
        Option(
            metavar="METRIC:N",
            help="Take only the N best checkpoints by a metric in them; METRIC:min:N or "
            "METRIC:max:N says which way is better.",
        ),
    ] = None,
    last: Annotated[
        int | None,
        Option(metavar="N", min=2, help="Take only the newest N checkpoints, by their step."),
    ] = None,
    every: Annotated[
        int | None,
        Option(metavar="K", min=1, help="Take only every K-th checkpoint, and always the newest."),
    ] = None,
    skip_broken: Annotated[
        bool,
        Option(
            "--skip-broken",
            help="Leave out checkpoints in a directory that are damaged or non-finite, and say "
            "which.",
        ),
    ] = False,
    buffers: Annotated[
        Literal["average", "newest"],
        Option(
            metavar="SOURCE",
            help="Average batch statistics (average), or take those of the newest checkpoint "
            "(newest).",
        ),
    ] = "average",
    into: Annotated[
        str | None,
        Option(
            "--into",
            metavar="PATH",
            help="Write a copy of this checkpoint, with the average in its model's state dict and "
            "all else as it was.",
        ),
    ] = None,
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
    operands = [parse_operand(path) for path in paths]
    options = AverageOptions(
        role=only, weights=weights, schedule=schedule, ema_decay=ema_decay,
        sigma_rel=sigma_rel, widths=widths, between=between, best=best, into=into,
        last=last, every=every, skip_broken=skip_broken, buffers=buffers,
        dtype=dtype or (), ties=ties, wrap=wrap, max_shard_size=max_shard_size,
        force=force, dry_run=dry_run,
    )  # fmt: skip
    write_and_answer(
        "average", "AverageReport", paths, partial(average, operands, output, options),
        verb="averaging", config=config, form=form, json=json, color=color,
    )  # fmt: skip

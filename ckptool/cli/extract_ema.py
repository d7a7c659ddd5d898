"""The options of ``ckptool extract-ema``."""

from functools import partial
from typing import Annotated, Literal

from ckptool.cli import options as shared
from ckptool.cli.output import place_named
from ckptool.cli.parameters import Option
from ckptool.cli.writing import write_and_answer
from ckptool.commands.extract_ema import ExtractOptions, extract_ema


def command(
    path: shared.Operand,
    output: shared.OutputOrBeside = None,
    ema: shared.Ema = None,
    model: shared.Model = None,
    names: Annotated[
        Literal["model", "bare", "ema"],
        Option(
            metavar="NAMES",
            help="Name tensors as in the model (model), without wrappers such as module. (bare), "
            "or as stored in the EMA (ema).",
        ),
    ] = "model",
    strip_prefix: Annotated[
        str | None,
        Option(metavar="P", help="Strip this prefix from the names of tensors, too."),
    ] = None,
    match: Annotated[
        shared.Globs | None,
        Option(
            metavar="GLOB", help="Write only tensors whose key path in the output matches GLOB."
        ),
    ] = None,
    dtype: shared.Dtypes = None,
    max_shard_size: shared.MaxShardSize = None,
    ties: shared.Ties = "once",
    wrap: shared.Wrap = None,
    buffers: shared.Buffers = "ema",
    force: shared.Force = False,
    dry_run: shared.DryRun = False,
    config: shared.Config = None,
    form: shared.Format = "text",
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> None:
    """Write the EMA weights to a file of their own.

    For any other weights, names or dtypes, and to drop the optimizer, see ckptool convert.
    """
    operand = place_named(path, ema)
    options = ExtractOptions(
        ema=operand.address, model=model, names=names, strip=strip_prefix, match=match or (),
        dtype=dtype or (), ties=ties, wrap=wrap, max_shard_size=max_shard_size, buffers=buffers,
        force=force, dry_run=dry_run,
    )  # fmt: skip
    write_and_answer(
        "extract-ema", "ExtractReport", [path], partial(extract_ema, operand.path, output, options),
        verb="extracting", config=config, form=form, json=json, color=color,
    )  # fmt: skip

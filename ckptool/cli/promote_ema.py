"""The options of ``ckptool promote-ema``."""

from functools import partial
from typing import Annotated

from ckptool.cli import options as shared
from ckptool.cli.output import place_named
from ckptool.cli.parameters import Option
from ckptool.cli.writing import write_and_answer
from ckptool.commands.promote_ema import promote_ema


def command(
    path: shared.Operand,
    output: Annotated[
        str | None,
        shared.output_option(
            "Write to this file, or under the name of PATH into this directory, in the format of "
            "PATH."
        ),
    ] = None,
    in_place: Annotated[
        bool,
        Option("--in-place", help="Replace PATH itself, once the copy is complete and checked."),
    ] = False,
    backup: Annotated[
        bool, Option("--backup", help="Keep the file that --in-place replaces as PATH.bak.")
    ] = False,
    ema: shared.Ema = None,
    model: shared.Model = None,
    allow_shared: Annotated[
        bool,
        Option("--allow-shared", help="Promote even if other tensors share the bytes that change."),
    ] = False,
    buffers: shared.Buffers = "ema",
    force: shared.Force = False,
    dry_run: shared.DryRun = False,
    config: shared.Config = None,
    form: shared.Format = "text",
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> None:
    """Copy the EMA weights into the model's state dict.

    Everything else stays as it is. The result is a copy, or with --in-place replaces the file. The
    state of the optimizer still belongs to the raw weights: resume training from the original.
    For a file of weights alone, or without the optimizer, see ckptool convert.
    """
    operand = place_named(path, ema)
    writing = partial(
        promote_ema, operand.path, output, in_place=in_place, backup=backup, ema=operand.address,
        model=model, allow_shared=allow_shared, buffers=buffers, force=force, dry_run=dry_run,
    )  # fmt: skip
    write_and_answer(
        "promote-ema", "PromoteReport", [path], writing,
        verb="promoting", config=config, form=form, json=json, color=color,
    )  # fmt: skip

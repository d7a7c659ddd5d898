"""The options of ``ckptool convert``."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from ckptool.cli import options as shared
from ckptool.cli.output import ExitCode
from ckptool.cli.parameters import Option
from ckptool.cli.writing import write_and_answer
from ckptool.commands.convert import ConvertOptions, convert
from ckptool.contents.selection import parse_operand
from ckptool.errors import UsageError
from ckptool.reports.write import ExplainReport


def command(
    path: shared.Operand,
    output: shared.OutputUnless = None,
    explain: Annotated[
        str | None,
        Option(
            "--explain",
            metavar="SOURCE",
            help="Write nothing; find by content of which tensors of SOURCE those of PATH are "
            "made, and print the rules for --rules that make them. The exit code is 1 if some are "
            "unexplained.",
        ),
    ] = None,
    renames: shared.Maps = None,
    rules: Annotated[
        Path | None,
        Option(
            "--rules",
            metavar="FILE",
            help="Apply the rules of a TOML file before all other options.",
        ),
    ] = None,
    split: Annotated[
        shared.Globs | None,
        Option(
            "--split",
            metavar="GLOB=NAMES",
            help="Cut each tensor whose stored name matches GLOB into parts, such as "
            "'*.qkv.*=*.q.*,*.k.*,*.v.*'; NAME:SIZE sets a size, @DIM at the end the dimension.",
        ),
    ] = None,
    join: Annotated[
        shared.Globs | None,
        Option(
            "--join",
            metavar="GLOBS=NAME",
            help="Join tensors along a dimension (@DIM behind NAME, by default 0), or stack "
            "them along a new one (@+DIM); # takes the numbers from 0 on.",
        ),
    ] = None,
    transpose: Annotated[
        shared.Globs | None,
        Option(
            "--transpose",
            metavar="GLOB",
            help="Swap the last two dimensions of the tensors whose stored name matches GLOB.",
        ),
    ] = None,
    only: Annotated[
        shared.Globs | None,
        Option(
            "--only",
            metavar="GLOB",
            help="Write only tensors whose name in the output matches GLOB. The words model and "
            "ema stand for #@model and #@ema; both together keep these parts of the checkpoint.",
        ),
    ] = None,
    drop: Annotated[
        shared.Globs | None,
        Option(
            "--drop",
            metavar="GLOB",
            help="Leave out tensors whose name in the output matches GLOB; or, of a whole "
            "checkpoint, the parts with this role or top-level key, such as optimizer.",
        ),
    ] = None,
    whole: Annotated[
        bool,
        Option(
            "--whole",
            help="Write the whole checkpoint as a zip of torch.save, also from its older formats.",
        ),
    ] = False,
    safe: Annotated[
        bool,
        Option(
            "--safe",
            help="Write the whole checkpoint as plain data that torch.load(weights_only=True) "
            "reads; refuse it if that would lose something.",
        ),
    ] = False,
    dtype: shared.Dtypes = None,
    max_shard_size: shared.MaxShardSize = None,
    ties: shared.Ties = "once",
    wrap: shared.Wrap = None,
    force: Annotated[
        bool,
        Option(
            "--force",
            help="Replace an existing file, and accept damaged values and casts that overflow.",
        ),
    ] = False,
    dry_run: shared.DryRun = False,
    config: shared.Config = None,
    form: shared.Format = "text",
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> ExitCode | None:
    """Write a state dict in another form, or a checkpoint without some of its parts.

    Without --drop optimizer and the like, the output holds the weights alone.
    """
    operand = parse_operand(path)
    if explain is not None:
        from ckptool.commands.explain import explain_conversion

        if output is not None:
            raise UsageError("--explain writes nothing, so it has no -o", hint="leave out one")
        made = write_and_answer(
            "convert", "ExplainReport", [path],
            partial(explain_conversion, parse_operand(explain), operand),
            verb="comparing", config=config, form=form, json=json, color=color,
        )  # fmt: skip
        return _tell_unexplained(made)
    if output is None:
        raise UsageError("Missing option '--output' / '-o'", hint="-o OUT names the output")
    options = ConvertOptions(
        address=operand.address, renames=renames or (), only=only or (), drop=drop or (),
        rules=rules, split=split or (), join=join or (), transpose=transpose or (),
        whole=whole, safe=safe, dtype=dtype or (), ties=ties, wrap=wrap,
        max_shard_size=max_shard_size,
        force=force, dry_run=dry_run,
    )  # fmt: skip
    write_and_answer(
        "convert", "ConvertReport", [path], partial(convert, operand.path, output, options),
        verb="converting", config=config, form=form, json=json, color=color,
    )  # fmt: skip
    return None


def _tell_unexplained(report: ExplainReport) -> ExitCode:
    """Return the exit code; say on stderr what is missing, since stdout goes into a file."""
    missing = len(report.tensors) - report.explained
    if not missing:
        return ExitCode.DONE
    count = f"{missing} of {len(report.tensors)} tensors"
    why = "is not explained by its" if missing == 1 else "are not explained by their"
    sys.stderr.write(f"note: no rule makes {count}, which {why} values\n")
    return ExitCode.NO

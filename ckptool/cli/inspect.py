"""The options of ``ckptool inspect``."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from ckptool.cli import options as shared
from ckptool.cli.config import read_settings
from ckptool.cli.output import (
    answer,
    output_for,
    progressing,
    tell_config,
    with_config,
)
from ckptool.cli.parameters import Option
from ckptool.commands.inspect import inspect_file, refuse_unused
from ckptool.commands.listing import Listing
from ckptool.commands.operands import checkpoint_files, is_run
from ckptool.contents.selection import Operand, parse_operand
from ckptool.errors import CkptError
from ckptool.process.progress import parts
from ckptool.render.outputs import EXACT, WITH_TENSORS
from ckptool.reports.inspect import InspectReport

TENSORS = "Tensors"  # panel of the help


def command(
    paths: shared.Operands,
    tensors: Annotated[
        bool,
        Option(
            "--tensors",
            panel=TENSORS,
            help="List every tensor with its dtype, shape and size.",
        ),
    ] = False,
    match: Annotated[
        shared.Globs | None,
        Option(
            metavar="GLOB",
            panel=TENSORS,
            help="List only tensors whose key path matches GLOB or holds this word, or all of a "
            "role (optimizer); can be given several times.",
        ),
    ] = None,
    only: Annotated[
        shared.Globs | None,
        Option(
            metavar="ROLE",
            panel=TENSORS,
            help="List only tensors of this role, such as model, ema or optimizer; can be given "
            "several times.",
        ),
    ] = None,
    sort: Annotated[
        Literal["size", "name"] | None,
        Option(
            metavar="ORDER",
            panel=TENSORS,
            help="List tensors by size, the largest first, or by name.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            panel=TENSORS,
            help="List the N largest tensors, or the first N by name with --sort name.",
        ),
    ] = None,
    flat: Annotated[
        bool,
        Option(
            "--flat",
            panel=TENSORS,
            help="List every tensor by its whole key path, without folding layers.",
        ),
    ] = False,
    stats: Annotated[
        bool,
        Option(
            "--stats",
            panel=TENSORS,
            help="Show range, mean and norm of the values of each tensor.",
        ),
    ] = False,
    histogram: Annotated[
        bool,
        Option(
            "--histogram",
            panel=TENSORS,
            help="Show how the values of each tensor are spread, besides --stats.",
        ),
    ] = False,
    digests: Annotated[
        bool,
        Option(
            "--digests",
            panel=TENSORS,
            help="Show the SHA-256 of each tensor, the same in every format.",
        ),
    ] = False,
    config: shared.Config = None,
    form: shared.Format = "text",
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> None:
    """Show what a checkpoint holds, and where its EMA is."""
    output = output_for("InspectReport", form, json=json)
    listing = Listing(
        tensors or flat, tuple(match or ()), stats or histogram, digests, tuple(only or ()),
        sort, top, histogram,
    )  # fmt: skip
    is_list = output == "text" and (flat or listing.is_chosen)
    drawn = listing._replace(every=True) if output in WITH_TENSORS else listing
    reports: list[Any] = []
    first: Operand | None = None  # that is read
    unread: list[Any] = []  # the reports that stand for paths that cannot be read
    refused: list[CkptError] = []
    settings = read_settings("inspect", paths, config)
    layouts = settings.layouts
    tell_config(settings)
    with progressing("reading") as progress:
        named = [*map(parse_operand, paths)]
        for operand in parts(progress, [*_each(named, refused)] if listing.is_wanted else named):
            path = operand.path
            try:
                if _is_run(operand):
                    from ckptool.commands.runs import inspect_directory

                    found: Any = inspect_directory(path, layouts=layouts)
                else:
                    found = inspect_file(operand, drawn, progress=progress, layouts=layouts)
                    first = first or operand
                reports.append(with_config(found, settings))
            except CkptError as error:
                refused.append(error)
                if error.path is not None:
                    from ckptool.commands.runs import unreadable_entry

                    unread.append(unreadable_entry(path, error))
                    reports.append(unread[-1])
    inspected = [one for one in reports if isinstance(one, InspectReport)]
    refuse_unused(listing, inspected, first, layouts)
    shown = [one for one in reports if not any(one is entry for entry in unread)]
    if shown and not (refused and output in EXACT):
        if len(reports) > 1 and not (output in EXACT or listing.is_wanted):
            from ckptool.commands.runs import in_a_table

            shown = list(in_a_table(reports))
        answer(shown, "list" if is_list else output, color=color)
    if refused:  # only the first is shown; the others show once it is fixed
        raise refused[0]


def _is_run(operand: Operand) -> bool:
    return operand.address is None and is_run(operand.path)


def _each(operands: Iterable[Operand], refused: list[CkptError]) -> Iterator[Operand]:
    """Yield the operands; instead of the directory of a run, yield its checkpoints one by one."""
    for operand in operands:
        try:
            if _is_run(operand):
                yield from map(Operand, checkpoint_files(operand.path))
            else:
                yield operand
        except CkptError as error:
            refused.append(error)

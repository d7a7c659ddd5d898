"""The options of ``ckptool diff``."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from ckptool.cli import completion
from ckptool.cli import options as shared
from ckptool.cli.config import read_settings
from ckptool.cli.output import (
    ExitCode,
    answer,
    concluding,
    joined,
    output_for,
    own_place,
    progressing,
    tell_config,
    with_config,
)
from ckptool.cli.parameters import Argument, Option
from ckptool.commands.diff import DiffOptions, diff
from ckptool.commands.operands import is_run
from ckptool.comparison.pairing import Asked, merge_selection
from ckptool.comparison.tolerances import merge_tolerances
from ckptool.contents.selection import parse_operand
from ckptool.errors import UsageError

Operand = Annotated[
    str,
    Argument(
        metavar="PATH[#ADDRESS]",
        autocompletion=completion.operands,
        help="A checkpoint, a part of it (a/b, @ema or @model), the directory of a run, or a "
        "document of digests.",
    ),
]

EQUAL = "What counts as equal"  # panel of the help
WHICH = "What is compared"  # panel of the help


def command(
    a: Operand,
    b: Operand,
    atol: Annotated[
        float | None,
        Option(
            metavar="X",
            panel=EQUAL,
            help="Accept absolute differences of floats up to X.",
        ),
    ] = None,
    rtol: Annotated[
        float | None,
        Option(
            metavar="X",
            panel=EQUAL,
            help="Accept differences up to X times the larger magnitude.",
        ),
    ] = None,
    ulp: Annotated[
        int | None,
        Option(
            metavar="N",
            panel=EQUAL,
            help="Accept differences of up to N representable floats (ULP).",
        ),
    ] = None,
    tolerance: Annotated[
        shared.Globs | None,
        Option(
            metavar="GLOB=ATOL[,RTOL]",
            panel=EQUAL,
            help="Use these tolerances for key paths that match GLOB; the most specific wins.",
        ),
    ] = None,
    match: Annotated[
        shared.Globs | None,
        Option(
            metavar="GLOB",
            panel=WHICH,
            help="Compare only tensors and values whose key path matches GLOB, or all of a role or "
            "top-level key, such as model.",
        ),
    ] = None,
    ignore: Annotated[
        shared.Globs | None,
        Option(
            metavar="GLOB",
            panel=WHICH,
            help="Leave out tensors and values whose key path matches GLOB, or all of a role or "
            "top-level key, such as optimizer.",
        ),
    ] = None,
    renames: Annotated[
        shared.Globs | None,
        Option(
            "--map",
            metavar="REGEX=REPL",
            panel=WHICH,
            help="Rename key paths on both sides by a regular expression, before pairing.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        Option(
            "--strict",
            panel=EQUAL,
            help="Compare strides, sharing, devices, gradient flags and versions, too.",
        ),
    ] = False,
    any_dtype: Annotated[
        bool,
        Option(
            "--any-dtype",
            panel=EQUAL,
            help="Compare values only, not the dtypes that they are stored in.",
        ),
    ] = False,
    stat: Annotated[
        bool, Option("--stat", panel=shared.OUTPUT, help="Print only the summary.")
    ] = False,
    name_only: Annotated[
        bool,
        Option(
            "--name-only",
            panel=shared.OUTPUT,
            help="Print only the key paths that differ.",
        ),
    ] = False,
    sort: Annotated[
        Literal["change", "name", "size"] | None,
        Option(
            metavar="ORDER",
            panel=shared.OUTPUT,
            help="List tensors by change, name or size, whatever their role.",
        ),
    ] = None,
    device: Annotated[
        str,
        Option(
            metavar="cpu|cuda[:N]",
            help="Compute on this device; a GPU pays off from several GB on.",
        ),
    ] = "cpu",
    config: shared.Config = None,
    form: shared.Format = "text",
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> ExitCode:
    """Compare two checkpoints, or two runs.

    Of two directories of checkpoints, those of the same step are compared, so that the answer says
    since when the runs differ.

    The exit code is 0 when they are equal, 1 when they differ, and 2 when they cannot be compared.
    """
    if stat and name_only:
        raise UsageError("--stat and --name-only do not go together")
    of_runs = _are_runs(a, b)
    output = output_for("RunDiffReport" if of_runs else "DiffReport", form, json=json)
    if of_runs and (stat or name_only or sort):
        raise UsageError(
            "--stat, --name-only and --sort are for two checkpoints, and these are two runs",
            hint=f"leave it out, or name two checkpoints in {a} and {b}",
        )
    if output != "text" and (stat or name_only):
        option = "--stat" if stat else "--name-only"
        raise UsageError(
            f"{option} shortens the text, and --format {output} is a document of everything",
            hint=f"leave out {option}, or --format",
        )
    place = own_place()
    configured = read_settings("diff", [a, b], config)
    settings = configured.options
    if place.speaks:
        tell_config(configured)
    options = DiffOptions(
        merge_selection(settings, match=match or (), ignore=ignore or (), renames=renames or ()),
        merge_tolerances(settings, atol=atol, rtol=rtol, ulp=ulp, special=tolerance or ()),
        strict or bool(settings.get("strict")),
        any_dtype or bool(settings.get("any_dtype")),
        f"cuda:{place.local}" if device == "cuda" and place.world > 1 else device,
        asked=Asked(
            tuple(match or ()), tuple(ignore or ()), tuple(renames or ()), tuple(tolerance or ())
        ),
        order=sort,
    )
    with joined(place) as ranks:
        with progressing("comparing", [a, b]) as progress:
            compare: Callable[..., Any] = diff
            if of_runs:
                from ckptool.commands.diff_runs import diff_runs as compare

            layouts = configured.layouts
            made = compare(a, b, options, progress=progress, layouts=layouts, ranks=ranks)
            report = with_config(made, configured)
        if place.speaks:
            with concluding():
                answer([report], "stat" if stat else "names" if name_only else output, color=color)
    if of_runs and report.unread:
        return ExitCode.CANNOT
    return ExitCode.DONE if report.equal else ExitCode.NO


def _are_runs(*texts: str) -> bool:
    """Return whether all operands are directories of several checkpoints."""
    operands = map(parse_operand, texts)
    return all(each.address is None and is_run(each.path) for each in operands)

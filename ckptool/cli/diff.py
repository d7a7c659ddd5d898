"""The options of ``ckptool diff``."""

from __future__ import annotations

from typing import Annotated, Literal

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
from ckptool.comparison.pairing import Asked, merge_selection
from ckptool.comparison.tolerances import merge_tolerances
from ckptool.errors import UsageError

Operand = Annotated[
    str,
    Argument(
        metavar="PATH[#ADDRESS]",
        autocompletion=completion.operands,
        help="A checkpoint, a part of it (a/b, @ema or @model), or a document of digests.",
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
    """Compare two checkpoints.

    The exit code is 0 when they are equal, 1 when they differ, and 2 when they cannot be compared.
    """
    if stat and name_only:
        raise UsageError("--stat and --name-only do not go together")
    output = output_for("DiffReport", form, json=json)
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
            report = diff(a, b, options, progress=progress, layouts=configured.layouts, ranks=ranks)
            report = with_config(report, configured)
        if place.speaks:
            with concluding():
                answer([report], "stat" if stat else "names" if name_only else output, color=color)
    return ExitCode.DONE if report.equal else ExitCode.NO

"""Options that several commands share, with one spelling, meaning and help text for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

Globs = list[str]
ColorName = Literal["auto", "always", "never"]
FormatName = Literal["text", "json", "md", "html", "github", "sarif", "code-scanning", "junit"]

Operand = Annotated[
    str,
    typer.Argument(
        metavar="PATH[#ADDRESS]",
        help="The checkpoint, or the part of it at a key path: a/b, prefix*, @ema or @model.",
    ),
]
Operands = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH[#ADDRESS]...",
        help="Checkpoints, parts of them, or directories of checkpoints.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; short for --format json.")
]
Format = Annotated[
    FormatName,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help=f"Print the answer as {', '.join(get_args(FormatName))}; no command has all of them.",
    ),
]
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="FORMAT=FILE",
        help="Write the answer to FILE in FORMAT, too; can be given several times.",
    ),
]
Color = Annotated[
    ColorName,
    typer.Option(metavar="WHEN", help="Color the output: auto (on a terminal), always or never."),
]
Ema = Annotated[
    str | None,
    typer.Option(
        "--ema",
        metavar="ADDRESS",
        help="Take the EMA weights at this key path; the same as PATH#ADDRESS.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ADDRESS",
        help="Take the state dict at this key path as the model that the EMA belongs to.",
    ),
]
Buffers = Annotated[
    Literal["ema", "model"],
    typer.Option(
        metavar="SOURCE",
        help="Take buffers, such as batch statistics, from the ema or from the model.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read this configuration, wherever it lies, instead of the nearest one.",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an existing file, and accept non-finite values."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")
]

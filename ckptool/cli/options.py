"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Color = Literal["auto", "always", "never"]
PathOperand = Annotated[Path, typer.Argument(metavar="PATH", help="The checkpoint.")]
OperandArgument = Annotated[
    str, typer.Argument(metavar="PATH[#ADDRESS]", help="The checkpoint, or a place in it.")
]
Format = Literal["text", "json", "md", "github", "sarif", "code-scanning", "junit"]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="How to answer; --json is --format json.")
]
ReportsOption = Annotated[
    list[str] | None,
    typer.Option("--report", metavar="FORMAT=FILE", help="Also write the answer to a file."),
]
ColorOption = Annotated[Color, typer.Option(help="When to colour the output.")]
EmaOption = Annotated[
    str | None,
    typer.Option(
        "--ema", metavar="ADDRESS", help="Where the averaged weights are: a/b or a/prefix*."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="ADDRESS", help="Which weights they average: a/b or a/prefix*."
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace an existing file; take values that are not finite.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")]

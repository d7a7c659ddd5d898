"""The options of ``ckptool inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ckptool.cli.options import (
    ColorOption,
    JsonOption,
)
from ckptool.cli.output import answer, house_layouts, progressing
from ckptool.commands.inspect import inspect_directory, inspect_file, is_run
from ckptool.errors import CkptError


def command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Checkpoints, or a run's folder.")
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    match: Annotated[
        str | None, typer.Option(metavar="GLOB", help="List the tensors whose address fits.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the listed values: range, mean, norm, not finite.")
    ] = False,
    digests: Annotated[
        bool, typer.Option("--digests", help="SHA-256 of each tensor, the same in every format.")
    ] = False,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Show what a checkpoint holds, where its EMA is, what training state rides along."""
    reports: list[Any] = []
    refused: list[CkptError] = []
    with progressing("reading") as progress:
        for path in paths:
            try:
                if is_run(path):
                    reports.append(inspect_directory(path, layouts=house_layouts()))
                else:
                    reports.append(
                        inspect_file(
                            path,
                            list_tensors=tensors,
                            match=match,
                            stats=stats,
                            digests=digests,
                            progress=progress,
                            layouts=house_layouts(),
                        )
                    )
            except CkptError as error:
                refused.append(error)
    if reports and not (refused and json):
        answer(reports if len(reports) > 1 else reports[0], json=json, color=color)
    if refused:  # the first is told; the others are found when it is mended
        raise refused[0]

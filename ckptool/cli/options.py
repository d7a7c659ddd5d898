"""Options that several commands share, with one spelling, meaning and help text for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ckptool.cli import completion
from ckptool.cli.parameters import Argument, Option
from ckptool.render.outputs import FORMS

Globs = list[str]
OUTPUT = "Output and settings"  # panel of the help

ColorName = Literal["auto", "always", "never"]

Operand = Annotated[
    str,
    Argument(
        metavar="PATH[#ADDRESS]",
        autocompletion=completion.operands,
        help="The checkpoint, a path or a URL, or the part of it at a key path: a/b, prefix*, "
        "@ema or @model.",
    ),
]
Operands = Annotated[
    list[str],
    Argument(
        metavar="PATH[#ADDRESS]...",
        autocompletion=completion.operands,
        help="Checkpoints, parts of them, or directories of checkpoints; paths or URLs.",
    ),
]
Json = Annotated[
    bool,
    Option("--json", panel=OUTPUT, help="Print one JSON document; short for --format json."),
]
Format = Annotated[
    str,
    Option(
        "--format",
        metavar="FORMAT",
        autocompletion=completion.forms,
        panel=OUTPUT,
        help=f"Print the answer as {', '.join(FORMS)}; no command has all of them.",
    ),
]
Reports = Annotated[
    list[str] | None,
    Option(
        "--report",
        metavar="FORMAT=FILE",
        panel=OUTPUT,
        help="Write the answer to FILE in FORMAT, too; can be given several times.",
    ),
]
Color = Annotated[
    ColorName,
    Option(
        metavar="WHEN",
        panel=OUTPUT,
        help="Color the output: auto (on a terminal), always or never.",
    ),
]
Ema = Annotated[
    str | None,
    Option(
        "--ema",
        metavar="ADDRESS",
        help="Take the EMA weights at this key path; the same as PATH#ADDRESS.",
    ),
]
Model = Annotated[
    str | None,
    Option(
        "--model",
        metavar="ADDRESS",
        help="Take the state dict at this key path as the model that the EMA belongs to.",
    ),
]
Buffers = Annotated[
    Literal["ema", "model"],
    Option(
        metavar="SOURCE",
        help="Take buffers, such as batch statistics, from the ema or from the model.",
    ),
]


def output_option(text: str) -> Option:
    """Return the option that names the output; ``text`` is its help."""
    return Option("-o", "--output", metavar="OUT", help=text)


_BY_SUFFIX = (
    "Write to this file, in the format of its suffix: .safetensors, or .pt, .pth, .ckpt or .bin "
    "for torch; NAME.dcp is a directory of torch.distributed.checkpoint."
)
Output = Annotated[str, output_option(_BY_SUFFIX)]
OutputUnless = Annotated[str | None, output_option(_BY_SUFFIX)]  # another option takes its place
OutputOrBeside = Annotated[
    str | None, output_option(f"{_BY_SUFFIX} The default is PATH with .ema.safetensors.")
]
Dtypes = Annotated[
    Globs | None,
    Option(
        "--dtype",
        metavar="[GLOB=]D",
        help="Cast floating-point tensors to this dtype (float16, bf16, float8_e4m3fn), or those "
        "whose name matches GLOB; can be given several times.",
    ),
]
MaxShardSize = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="Write safetensors files of at most this size, such as 5GB, and their index.",
    ),
]
Ties = Annotated[
    Literal["once", "each"],
    Option(
        metavar="TIES",
        help="Write shared tensors of a safetensors file under one name and the others in its "
        "metadata (once), or under each name (each).",
    ),
]
Wrap = Annotated[
    str | None,
    Option(metavar="KEY", help="Put the state dict under this key of a torch file or .dcp."),
]
Maps = Annotated[
    list[str] | None,
    Option(
        "--map",
        metavar="REGEX=REPL",
        help="Rename by a regular expression; can be given several times.",
    ),
]
Config = Annotated[
    Path | None,
    Option(
        "--config",
        metavar="FILE",
        panel=OUTPUT,
        help="Read this configuration, wherever it lies, instead of the nearest one.",
    ),
]
Force = Annotated[
    bool,
    Option("--force", help="Replace an existing file, and accept non-finite values."),
]
DryRun = Annotated[bool, Option("--dry-run", help="Show what would be written, and write nothing.")]

"""Where an extraction goes, and in which format: what ``-o`` says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ckptool.errors import UsageError

DEFAULT_SUFFIX = ".ema.safetensors"

# What the output's suffix chooses.
FORMAT_OF_SUFFIX: Mapping[str, str] = {
    ".safetensors": "safetensors",
    ".pt": "torch-zip",
    ".pth": "torch-zip",
    ".ckpt": "torch-zip",
    ".bin": "torch-zip",
}


def output_path(source: Path, output: str | Path | None, name: str | None = None) -> Path:
    """The file to write: beside the source, as named, or inside the folder that is named.

    ``name`` is that of the file in a folder, by default the same as beside the source.
    """
    beside = _beside(source)
    return beside if output is None else in_folder(output, name or beside.name)


def in_folder(output: str | Path, name: str) -> Path:
    """``output``, or where that is a folder, the file ``name`` in it.

    A folder is one that is there, or ends with a slash.
    """
    is_folder = str(output).endswith(("/", os.sep)) or os.path.isdir(output)  # noqa: PTH112
    return Path(output) / name if is_folder else Path(output)


def _beside(source: Path) -> Path:
    """Beside the checkpoint; a folder's name is kept whole, and found for ``.`` and ``..``."""
    with suppress(OSError):  # opening it says what is wrong
        if source.is_dir():
            folder = source.resolve()
            return folder.parent / (folder.name + DEFAULT_SUFFIX)
    return source.parent / (source.stem + DEFAULT_SUFFIX)


def format_of(output: Path) -> str:
    """What the suffix chooses.

    Raises:
        UsageError: nothing.
    """
    kind = FORMAT_OF_SUFFIX.get(output.suffix.lower())
    if kind is None:
        known = " ".join(FORMAT_OF_SUFFIX)
        raise UsageError(
            f"the suffix {output.suffix!r} chooses no format", path=output, hint=f"one of: {known}"
        )
    return kind

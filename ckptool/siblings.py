"""Averaged weights in another file: ``last-EMA.ckpt`` beside ``last.ckpt``, ``unet_ema/``.

Some writers mark nothing inside the file. Then only names tell: a neighbour whose name, without
its marker, is ours; or one with a marker and the same step at its end (``model000005.pt``,
``ema_0.9999_000005.pt``). What is found so is opened and must hold the same names and shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckptool.errors import CkptError
from ckptool.formats.base import SourceFile
from ckptool.markers import marker_in, unmarked

MAX_CONFIG = 1 << 20  # bytes
MAX_NEIGHBOURS = 10_000  # files of a folder that are looked at
POSTHOC = "posthoc-ema"  # ema-pytorch's PostHocEMA: the average is made from all tracks later
TRACK = re.compile(r"^\d+\.\d+$")  # its files: <track>.<step>.pt
STEP = re.compile(r"(\d+)$")
ROLES = re.compile(
    r"^(model|net|network|unet|nnet|weights?|ckpt|checkpoint|generator|g)?[\W_]*$", re.IGNORECASE
)


def averaged_neighbours(path: Path) -> Iterator[tuple[str, Path]]:
    """(kind, file) of what may hold the averages of the weights in ``path``, by their names."""
    if marker_in([path.stem]):
        return
    yield from (("ema", p) for p in _alike(path) if _is_average_of(p.stem, path.stem))
    for folder in _files(path.parent, folders=True):
        if marker_in([folder.name]) and not unmarked(folder.name):  # ema/last.pt
            yield from (("ema", p) for p in (folder / path.name,) if p.is_file())
    yield from (("ema", p) for p in _in_neighbour_folders(path))
    if not TRACK.match(path.stem):
        yield from ((POSTHOC, p) for p in _alike(path) if TRACK.match(p.stem))


def raw_neighbours(path: Path) -> Iterator[Path]:
    """Files that may hold the raw weights whose averages are in ``path``, by their names."""
    if marker_in([path.stem]):
        yield from (p for p in _alike(path) if _is_average_of(path.stem, p.stem))


def config_beside(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder: diffusers writes the average's settings there."""
    config = path.with_name("config.json")
    try:
        with SourceFile(config) as file:  # regular files only: a pipe would never end
            fields = json.loads(file.head(MAX_CONFIG))
    except (CkptError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _in_neighbour_folders(path: Path) -> Iterator[Path]:
    """``unet_ema/weights.safetensors`` beside ``unet/weights.safetensors``."""
    home = path.parent.absolute()
    if marker_in([home.name]):
        return
    for folder in _files(home.parent, folders=True):
        if marker_in([folder.name]) and unmarked(folder.name) == home.name:
            yield from (p for p in (folder / path.name,) if p.is_file())


def _is_average_of(stem: str, ours: str) -> bool:
    if not marker_in([stem]) or marker_in([ours]):
        return False
    bare = unmarked(stem)
    if bare == ours:
        return True
    step, own = STEP.search(stem), STEP.search(ours)
    same_step = step is not None and own is not None and int(step[1]) == int(own[1])
    return same_step and bool(ROLES.match(ours[: own.start()])) if own else False


def _alike(path: Path) -> list[Path]:
    """The other files in the folder with the same suffix: one writer wrote both."""
    return [p for p in _files(path.parent) if p.suffix == path.suffix and p.name != path.name]


def _files(folder: Path, *, folders: bool = False) -> list[Path]:
    """The files (or the folders) in a folder, sorted; nothing when it cannot be listed."""
    try:
        entries = [p for _, p in zip(range(MAX_NEIGHBOURS), folder.iterdir(), strict=False)]
    except OSError:
        return []
    return sorted(p for p in entries if (p.is_dir() if folders else p.is_file()))

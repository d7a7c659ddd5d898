"""EMA weights in sidecar files, which are found by name, opened and compared with the model.

Some writers put no keyword inside the file, so that only file names tell. The name of a sidecar
file is that of the model's file plus a keyword, or has a keyword and ends with the same step
(``model000005.pt``, ``ema_0.9999_000005.pt``). A directory can have the keyword instead:
``ema/last.pt``, ``unet_ema/``. The files found are opened, and must hold the same names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ckptool.contents.given import refuse_given
from ckptool.contents.inventory import Table, take_inventory
from ckptool.ema.candidates import POSTHOC, Candidate, EmaLocation
from ckptool.ema.decide import decide
from ckptool.ema.examine import Examiner
from ckptool.ema.layouts import Layouts
from ckptool.ema.metadata import META_KEYS, config_beside, split_counters
from ckptool.ema.model import choose_model
from ckptool.ema.search import find_candidates
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import read_provenance
from ckptool.names import AVERAGES, MODEL_FOLDER, marker_in, unglued, unmarked
from ckptool.records import replace
from ckptool.regex import regex
from ckptool.reports.base import MainSlot
from ckptool.sources.local import BoundedFile


def among_sidecars(examiner: Examiner, location: EmaLocation) -> EmaLocation:
    """Locate EMA or raw weights in sidecar files, for a file that holds no candidate."""
    checkpoint, model = examiner.checkpoint, location.model
    if model is None or checkpoint.is_part or not checkpoint.is_local:
        return location
    path, budget = checkpoint.path, _Budget(len(model.entries))
    found = tuple(
        candidate
        for kind, other in averaged_neighbours(path)
        for candidate in _in_sidecar(examiner, model, other, kind, budget)
    )
    if found:
        location = decide(examiner, model, found)
    elif any(
        candidate
        for other in raw_neighbours(path)
        for candidate in _in_sidecar(examiner, model, other, "raw", budget)
    ):
        location = replace(location, main_slot=MainSlot.AVERAGED)
    return replace(location, unread=tuple(budget.unread))


BYTES_EACH = 1 << 20  # of a sidecar file, to find out its names, and for each tensor of the model:
BYTES_PER_TENSOR = 1 << 12  # five times what torch.save writes about a tensor and its optimizer
FILES_IN_FULL = 8  # sidecar files together may need as much as so many of them alone
MAX_OPENED = 256  # sidecar files


class _Budget:
    """Bounds of what sidecar files may cost: whoever made them, the file that is asked for is ours.

    Files whose names fit, but that were not read, are noted with the reason.
    """

    def __init__(self, tensors: int) -> None:
        self.each = BYTES_EACH + BYTES_PER_TENSOR * tensors
        self.left = FILES_IN_FULL * self.each
        self.opened = 0
        self.unread: list[str] = []

    def open(self, path: Path) -> Checkpoint | None:
        """Return a sidecar file as a checkpoint; None if it cannot be read, or costs too much."""
        self.opened += 1
        if self.opened > MAX_OPENED or self.left <= 0:
            self.unread.append(f"{path.name}: too many files have such names")
            return None
        try:
            file = BoundedFile(path, min(self.each, self.left))
            try:
                checkpoint = open_checkpoint(file)
            finally:
                self.left -= file.taken
        except CkptError as error:
            self.unread.append(f"{path.name}: {error.message}")
            return None
        return checkpoint


def _in_sidecar(
    examiner: Examiner, model: Table, path: Path, kind: str, budget: _Budget
) -> Iterator[Candidate]:
    """Yield the weights of another file, if they have the names and shapes of the model."""
    other = budget.open(path)
    if other is None:
        return
    with other:
        found = _weights_in(other, examiner.layouts, model, kind)
        if found is None:
            return
        try:
            refuse_given(other, (found.table,))
        except CkptError as error:
            budget.unread.append(f"{path.name}: {error.message}")
            return
        examiner.checkpoint.reader.take_over(other.reader)  # its values are read later
    meta = {"file name": path.stem} if re.search(r"\d", path.stem) else {}
    meta |= {key: value for key, value in config_beside(path).items() if key in META_KEYS}
    yield replace(found, file=path, aliases=(), layout=None, meta=meta)


def _weights_in(other: Checkpoint, layouts: Layouts, model: Table, kind: str) -> Candidate | None:
    """Return the weights of another file, by its own key paths; None where they do not fit."""
    try:
        tables = take_inventory(other.tree).weights
        if read_provenance(other.metadata) is not None:
            return None  # ckptool wrote it, maybe from an older checkpoint
    except CkptError:
        return None
    table = choose_model([t for t in tables if not t.is_list])
    if table is None:
        return None
    entries, _ = split_counters(table, model)
    why = f"the file beside it is called {other.path.name}"
    whole = replace(table, entries=entries)
    found = Examiner(other, layouts).examine(whole, kind, why, model)
    alignment = found.alignment
    if alignment is None or alignment.missing_keys or alignment.unexpected_keys:
        return None
    if kind == "ema" and _keeps_both(other, layouts):
        return None  # a checkpoint of its own, whose model is raw
    return found


def _keeps_both(checkpoint: Checkpoint, layouts: Layouts) -> bool:
    """Return whether a file has, or may have, raw weights and EMA weights of its own."""
    try:
        examiner = Examiner(checkpoint, layouts)
        location = decide(examiner, *find_candidates(examiner, None))
    except CkptError:  # too many places to tell
        return True
    return any(c.is_average for c in location.candidates) and location.main_slot is MainSlot.RAW


# --------------------------------------------------------------------------- names of sidecar files


MAX_NEIGHBOURS = 10_000  # entries of a directory that are read
TRACK = regex(r"^\d+\.\d+$")  # stem of its files: <track>.<step>.pt
STEP = regex(r"(\d+)$")
ROLES = regex(
    r"^(model|net|network|unet|nnet|weights?|ckpt|checkpoint|generator|g)?[\W_]*$", re.IGNORECASE
)


def averaged_neighbours(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield (kind, file) of files that by name may hold the EMA of the weights in ``path``."""
    if marker_in([path.stem]):
        return
    yield from (("ema", p) for p in _alike(path) if _is_average_of(p.stem, path.stem))
    for folder in (*_folders_below(path), *_folders_beside(path)):
        yield from (("ema", p) for p in _twins_in(folder, path))
    if not TRACK.match(path.stem):
        yield from ((POSTHOC, p) for p in _alike(path) if TRACK.match(p.stem))


def raw_neighbours(path: Path) -> Iterator[Path]:
    """Yield files that by name may hold the raw weights whose EMA is in ``path``."""
    yield from (p for p in _alike(path) if _is_average_of(path.stem, p.stem))
    home = path.parent.absolute()
    if _is_average_folder(home.name):
        around = [home.parent, *_files(home.parent, folders=True)]
        for folder in around if not unmarked(home.name) else around[1:]:
            is_above = folder == home.parent
            if is_above or _is_folder_of_averages(home.name, folder.name):
                yield from (p for p in (folder / path.name,) if p.is_file())


def _folders_below(path: Path) -> Iterator[Path]:
    """Yield directories like ``ema/`` beside ``last.pt``."""
    for folder in _files(path.parent, folders=True):
        if _is_average_folder(folder.name) and not unmarked(folder.name):
            yield folder


def _folders_beside(path: Path) -> Iterator[Path]:
    """Yield directories like ``unet_ema/`` beside ``unet/``, or ``ema/`` beside ``model/``."""
    home = path.parent.absolute()
    if not marker_in([home.name]):
        for folder in _files(home.parent, folders=True):
            if _is_folder_of_averages(folder.name, home.name):
                yield folder


def _is_average_folder(name: str) -> bool:
    marker = marker_in([name])
    return marker is not None and marker.kind in AVERAGES


def _is_folder_of_averages(name: str, ours: str) -> bool:
    if not _is_average_folder(name) or name == ours:  # a directory is not beside itself
        return False
    bare = unmarked(name)
    return bare == ours or (not bare and MODEL_FOLDER.fullmatch(ours) is not None)


def _twins_in(folder: Path, path: Path) -> Iterator[Path]:
    """Yield the files of a directory of EMA weights with the name of ``path``, plus any keyword.

    If each of the two directories has only one file, their names may differ.
    """
    if (folder / path.name).is_file():
        yield folder / path.name
        return
    there = [p for p in _files(folder) if p.suffix == path.suffix]
    named = [p for p in there if _is_average_of(p.stem, path.stem)]
    is_lone = len(there) == 1 and not _alike(path)
    yield from named or (there if is_lone else ())


def _is_average_of(stem: str, ours: str) -> bool:
    if marker_in([ours]):
        return False
    if not marker_in([stem]):
        return bool(ours) and ours in unglued(stem)
    bare = unmarked(stem)
    if bare == ours:
        return True
    step, own = STEP.search(stem), STEP.search(ours)
    same_step = step is not None and own is not None and int(step[1]) == int(own[1])
    return same_step and bool(ROLES.match(ours[: own.start()])) if own else False


def _alike(path: Path) -> list[Path]:
    """Return the other files in the directory with the same suffix, as of the same writer."""
    return [p for p in _files(path.parent) if p.suffix == path.suffix and p.name != path.name]


def _files(folder: Path, *, folders: bool = False) -> list[Path]:
    """Return the files (or the directories) in a directory, sorted; [] if it cannot be listed."""
    try:
        entries = [p for _, p in zip(range(MAX_NEIGHBOURS), folder.iterdir(), strict=False)]
    except OSError:
        return []
    return sorted(p for p in entries if (p.is_dir() if folders else p.is_file()))

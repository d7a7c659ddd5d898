"""EMA weights in sidecar files, which are found by name, opened and compared with the model.

Some writers put no keyword inside the file, so that only file names tell (``neighbours.py``). The
files found are opened, and must hold the same names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ckptool.contents.given import refuse_given
from ckptool.contents.inventory import Table, take_inventory
from ckptool.ema.candidates import Candidate, EmaLocation
from ckptool.ema.decide import decide
from ckptool.ema.examine import Examiner
from ckptool.ema.layouts import Layouts
from ckptool.ema.metadata import META_KEYS, config_beside, split_counters
from ckptool.ema.model import choose_model
from ckptool.ema.neighbours import averaged_neighbours, raw_neighbours
from ckptool.ema.search import find_candidates
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import read_provenance
from ckptool.records import replace
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

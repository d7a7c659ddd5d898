"""Files beside a checkpoint that by their names may hold its EMA weights, or the raw weights.

The name of such a file is that of the model's file plus a keyword, or has a keyword and ends with
the same step (``model000005.pt``, ``ema_0.9999_000005.pt``). A directory can have the keyword
instead: ``ema/last.pt``, ``unet_ema/``. A run has hundreds of checkpoints, each of which is asked
for its neighbours. So a directory is listed once, and its files are kept by what their names tell.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from ckptool.ema.candidates import POSTHOC
from ckptool.names import AVERAGES, MODEL_FOLDER, marker_in, unglued, unmarked
from ckptool.regex import regex

MAX_NEIGHBOURS = 10_000  # entries of a directory that are read
TRACK = regex(r"^\d+\.\d+$")  # stem of its files: <track>.<step>.pt
STEP = regex(r"(\d+)$")
ROLES = regex(
    r"^(model|net|network|unet|nnet|weights?|ckpt|checkpoint|generator|g)?[\W_]*$", re.IGNORECASE
)


class _Stems:
    """Files of one suffix in a directory, by what their stems tell; each list is sorted."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self.tracks = [p for p in self.files if TRACK.match(p.stem)]
        self._raw = defaultdict[str, list[Path]](list)  # stem without a keyword
        self._raw_at = defaultdict[int, list[Path]](list)  # step, behind the name of a role
        self._glued = defaultdict[str, list[Path]](list)  # what is left without a glued keyword
        self._marked = defaultdict[str, list[Path]](list)  # what is left without the keyword
        self._marked_at = defaultdict[int, list[Path]](list)  # step
        for path in self.files:
            stem = path.stem
            step = STEP.search(stem)
            if marker_in([stem]):
                self._marked[unmarked(stem)].append(path)
                if step:
                    self._marked_at[int(step[1])].append(path)
                continue
            self._raw[stem].append(path)
            if step and ROLES.match(stem[: step.start()]):
                self._raw_at[int(step[1])].append(path)
            for bare in unglued(stem):
                self._glued[bare].append(path)

    def averages_of(self, stem: str) -> list[Path]:
        """Return the files that by name hold the EMA of the weights in a file with this stem."""
        if not stem or marker_in([stem]):
            return []
        found = {*self._glued.get(stem, ()), *self._marked.get(stem, ())}
        step = STEP.search(stem)
        if step and ROLES.match(stem[: step.start()]):
            found.update(self._marked_at.get(int(step[1]), ()))
        return sorted(found)

    def raws_of(self, stem: str) -> list[Path]:
        """Return the files that by name hold the raw weights whose EMA has this stem."""
        if not marker_in([stem]):
            return sorted({path for bare in unglued(stem) for path in self._raw.get(bare, ())})
        found, step = {*self._raw.get(unmarked(stem), ())}, STEP.search(stem)
        return sorted(found | {*(self._raw_at.get(int(step[1]), ()) if step else ())})


class _Directory:
    """The files of a directory by their suffixes, and the directories in it."""

    def __init__(self, folder: Path) -> None:
        try:
            found = [p for _, p in zip(range(MAX_NEIGHBOURS), folder.iterdir(), strict=False)]
        except OSError:  # it cannot be listed
            found = []
        self.folders = sorted(p for p in found if p.is_dir())
        self.of_averages = [p for p in self.folders if _is_average_folder(p.name)]
        by_suffix = defaultdict[str, list[Path]](list)
        for path in sorted(p for p in found if p.is_file()):
            by_suffix[path.suffix].append(path)
        self._stems = {suffix: _Stems(paths) for suffix, paths in by_suffix.items()}

    def like(self, path: Path) -> _Stems:
        """Return the files with the suffix of another, as of the same writer."""
        return self._stems.get(path.suffix) or _Stems(())


SETTLED = 2.0  # seconds after which a change of a directory has a time of its own


def _directory(folder: Path) -> _Directory:
    """Return a directory as it is now; one that has not changed is listed once."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return _Directory(folder)
    if time.time() - changed / 1e9 < SETTLED:
        return _Directory(folder)
    return _listed(folder, changed)


@lru_cache(maxsize=16)
def _listed(folder: Path, _changed: int) -> _Directory:
    return _Directory(folder)


def averaged_neighbours(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield (kind, file) of files that by name may hold the EMA of the weights in ``path``."""
    if marker_in([path.stem]):
        return
    beside = _directory(path.parent).like(path)
    yield from (("ema", p) for p in beside.averages_of(path.stem) if p.name != path.name)
    for folder in (*_folders_below(path), *_folders_beside(path)):
        yield from (("ema", p) for p in _twins_in(folder, path))
    if not TRACK.match(path.stem):
        yield from ((POSTHOC, p) for p in beside.tracks if p.name != path.name)


def raw_neighbours(path: Path) -> Iterator[Path]:
    """Yield files that by name may hold the raw weights whose EMA is in ``path``."""
    beside = _directory(path.parent).like(path)
    yield from (p for p in beside.raws_of(path.stem) if p.name != path.name)
    home = path.parent.absolute()
    if _is_average_folder(home.name):
        around = [home.parent, *_directory(home.parent).folders]
        for folder in around if not unmarked(home.name) else around[1:]:
            is_above = folder == home.parent
            if is_above or _is_folder_of_averages(home.name, folder.name):
                yield from (p for p in (folder / path.name,) if p.is_file())


def _folders_below(path: Path) -> Iterator[Path]:
    """Yield directories like ``ema/`` beside ``last.pt``."""
    for folder in _directory(path.parent).of_averages:
        if not unmarked(folder.name):
            yield folder


def _folders_beside(path: Path) -> Iterator[Path]:
    """Yield directories like ``unet_ema/`` beside ``unet/``, or ``ema/`` beside ``model/``."""
    home = path.parent.absolute()
    if not marker_in([home.name]):
        for folder in _directory(home.parent).of_averages:
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
    there = _directory(folder).like(path)
    others = [p for p in _directory(path.parent).like(path).files if p.name != path.name]
    is_lone = len(there.files) == 1 and not others
    yield from there.averages_of(path.stem) or (there.files if is_lone else ())

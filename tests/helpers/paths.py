"""Where the fixtures are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "fixtures"


def _find_zoo() -> Path | None:
    """``shared/zoo`` beside the repository or further up."""
    places = (parent / "shared" / "zoo" for parent in REPOSITORY.parents)
    return next((place for place in places if (place / "manifest.json").is_file()), None)


ZOO = _find_zoo()


def contents(folder: Path) -> dict[Path, tuple[int, ...]]:
    """What is in a folder, such that any change makes a difference; reading is none."""
    return {path: _identity(path.lstat()) for path in folder.rglob("*")}


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_mode, status.st_nlink, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody whom permissions bind: root may do everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)

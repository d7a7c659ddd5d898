"""Where the fixtures are."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "fixtures"


def _find_zoo() -> Path | None:
    """``shared/zoo`` beside the repository or further up."""
    places = (parent / "shared" / "zoo" for parent in REPOSITORY.parents)
    return next((place for place in places if (place / "manifest.json").is_file()), None)


ZOO = _find_zoo()

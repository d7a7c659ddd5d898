"""Where a file that ckptool wrote comes from: a small record in the file itself.

torch zips carry it as a record that torch ignores, safetensors in ``__metadata__``; the other
containers have no place for it. It is a claim like any other in a file: shown, and believed only
where the values agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

KEY = "ckptool"  # in the metadata of a checkpoint


OPTIONAL = {"model", "layout"}  # fields that may be None


class Provenance(NamedTuple):
    """What was done to make a file."""

    version: str  # of ckptool
    command: str  # extract-ema | promote-ema
    source: str  # the file's name, without its folder
    ema: str  # address of the averages in the source
    model: str | None  # address of the slot that they average
    layout: str | None  # row of LAYOUTS
    time: str  # UTC, ISO 8601


def as_text(provenance: Provenance) -> str:
    """One line of JSON."""
    return json.dumps(provenance._asdict(), ensure_ascii=True)


def read_provenance(metadata: Mapping[str, Any]) -> Provenance | None:
    """The record in a checkpoint's metadata; None when there is none, or another's."""
    try:
        fields = json.loads(metadata.get(KEY, ""))
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    known: dict[str, Any] = {name: fields.get(name) for name in Provenance._fields}
    is_complete = all(
        isinstance(value, str) or (value is None and name in OPTIONAL)
        for name, value in known.items()
    )
    return Provenance(**known) if is_complete else None

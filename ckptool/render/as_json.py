"""Reports as JSON documents: exact, ASCII only, ``schema`` first.

ASCII only, so that a name from a file cannot steer the terminal that the document is printed on,
and lone surrogates survive. Numbers that JSON has no word for (NaN, infinities) become their names
as strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ckptool.reports import SCHEMAS

MAX_BITS = 4096  # of an integer in decimal; Python refuses to write much larger ones


def to_json(report: Any) -> str:
    """One document; an array for a list of reports."""
    return json.dumps(plain(report), indent=2, ensure_ascii=True, allow_nan=False)


def plain(value: Any) -> Any:
    """A report as what ``json`` can write."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        schema = SCHEMAS.get(type(value).__name__)
        head = {"schema": schema} if schema else {}
        kept = zip(value._fields, value, strict=True)
        return head | {name: plain(part) for name, part in kept if not _absent(name, part)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value if value is None or _is_exact(value) else _spelled(value)


def _is_exact(value: Any) -> bool:
    """Whether JSON has a word for it that Python can write."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (bool, str)) or (isinstance(value, int) and not _is_huge(value))


def _is_huge(value: int) -> bool:
    return value.bit_length() > MAX_BITS


def _spelled(value: Any) -> str:
    return hex(value) if isinstance(value, int) else str(value)


def _absent(name: str, part: Any) -> bool:
    """Parts that were not asked for."""
    optional = {"entries", "stats", "sha256", "error", "remedy", "provenance"}
    return part is None and name in optional

"""Reports as JSON documents: exact, ASCII only, ``schema`` first.

With ASCII only, a name from a file cannot steer the terminal that the document is printed on, and
lone surrogates survive. Two number signs in a row, which logs of jobs obey, are escaped as well.
Non-finite numbers, which JSON lacks, become strings with their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from ckptool.regex import regex
from ckptool.reports.base import MAY_BE_ABSENT, SCHEMAS

_OBEYED = regex("#(?=#)")  # only strings hold this character
MAX_BITS = 4096  # of an integer in decimal; Python refuses to write much larger integers


def to_documents(reports: Sequence[Any]) -> str:
    """Return one JSON document: an array for several reports."""
    return to_json(list(reports) if len(reports) > 1 else reports[0])


def to_json(report: Any) -> str:
    """Return one document; an array for a list of reports."""
    text = json.dumps(plain(report), indent=2, ensure_ascii=True, allow_nan=False)
    return _OBEYED.sub(r"\\u0023", text) if "##" in text else text


def plain(value: Any) -> Any:
    """Return a report as values that ``json`` can write."""
    if is_dataclass(value) and not isinstance(value, type):
        schema = SCHEMAS.get(type(value).__name__)
        parts = {"schema": schema} if schema else {}
        for each in fields(value):
            part = getattr(value, each.name)
            if part is not None or each.metadata != MAY_BE_ABSENT:
                parts[each.name] = plain(part)
        return parts
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if value is None or _is_exact(value):
        return value
    return hex(value) if isinstance(value, int) else str(value)


def _is_exact(value: Any) -> bool:
    """Return whether JSON can express the value and Python can write it."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() <= MAX_BITS
    return isinstance(value, str)

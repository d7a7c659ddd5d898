"""Reports as JSON documents: exact, ASCII only, ``schema`` first.

With ASCII only, a name from a file cannot steer the terminal that the document is printed on, and
lone surrogates survive. Two number signs in a row, which logs of jobs obey, are escaped as well.
Non-finite numbers, which JSON lacks, become strings with their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from json.encoder import encode_basestring_ascii as _quoted
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
    text = _written(report, "\n")
    return _OBEYED.sub(r"\\u0023", text) if "##" in text else text


def _written(value: Any, margin: str) -> str:
    """Return a value as ``json.dumps`` writes it with an indent, which takes three times as long.

    A report has a row for each of 100,000 tensors, with thirty values in it.
    """
    write = _SCALARS.get(type(value))
    if write is not None:
        return write(value)
    inner = f"{margin}  "
    if isinstance(value, (list, tuple)) and not hasattr(value, "_asdict"):
        return _enclosed("[]", [_written(part, inner) for part in value], margin)
    parts = _parts(value)
    if parts is not None:
        named = [f"{_quoted(name)}: {_written(part, inner)}" for name, part in parts.items()]
        return _enclosed("{}", named, margin)
    return next(
        (w(value) for kind, w in _SCALARS.items() if isinstance(value, kind)), _other(value)
    )


def _enclosed(brackets: str, parts: Sequence[str], margin: str) -> str:
    if not parts:
        return brackets
    return f"{brackets[0]}{margin}  {f',{margin}  '.join(parts)}{margin}{brackets[1]}"


def _parts(value: Any) -> dict[str, Any] | None:
    """Return the fields of a report, or the items of a mapping; None for anything else."""
    if is_dataclass(value) and not isinstance(value, type):
        schema, names = _form(type(value))
        parts = {"schema": schema} if schema else {}
        for name, may_be_absent in names:
            part = getattr(value, name)
            if part is not None or not may_be_absent:
                parts[name] = part
        return parts
    if isinstance(value, tuple):
        value = value._asdict()  # type: ignore[attr-defined]
    return {str(key): part for key, part in value.items()} if isinstance(value, Mapping) else None


@cache
def _form(report: Any) -> tuple[str | None, list[tuple[str, bool]]]:
    """Return the schema of a class of reports, and its fields: whether each may be absent."""
    names = [(each.name, each.metadata == MAY_BE_ABSENT) for each in fields(report)]
    return SCHEMAS.get(report.__name__), names


def _integer(value: int) -> str:
    return int.__repr__(value) if value.bit_length() <= MAX_BITS else _quoted(hex(value))


def _number(value: float) -> str:
    return float.__repr__(value) if math.isfinite(value) else _quoted(str(value))


def _other(value: Any) -> str:
    return _quoted(str(value))


_SCALARS: Mapping[type, Callable[[Any], str]] = {
    str: _quoted,
    bool: lambda value: "true" if value else "false",
    int: _integer,
    float: _number,
    type(None): lambda _: "null",
}

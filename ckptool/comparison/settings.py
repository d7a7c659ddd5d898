r"""The options of a comparison from the configuration and from the command line together.

::

    [diff]                           # [tool.ckptool.diff] in pyproject.toml
    atol = 1e-12
    ignore = ["*wall_time*"]
    map = ['^module\.=']
    [diff.tolerance]
    "*.delta_*" = 1e-8               # atol
    "outputs/*" = [1e-6, 1e-5]       # atol, rtol

What is typed wins: a number replaces the configured one, a glob of equal text the configured row;
further globs and maps come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptool.comparison.pairing import Selection, parse_rename
from ckptool.comparison.tolerances import (
    Tolerance,
    Tolerances,
    choose_tolerances,
    parse_tolerance,
    tolerance_row,
)
from ckptool.errors import UsageError


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# What may stand in the table, and in which form.
FORMS: Mapping[str, Callable[[Any], bool]] = {
    "atol": _is_number,
    "rtol": _is_number,
    "ulp": lambda value: isinstance(value, int) and _is_number(value),
    "strict": lambda value: isinstance(value, bool),
    "any_dtype": lambda value: isinstance(value, bool),
    "match": _is_texts,
    "ignore": _is_texts,
    "map": _is_texts,
    "tolerance": lambda value: isinstance(value, dict),
}


def merge_tolerances(
    settings: Mapping[str, Any],
    *,
    atol: float | None = None,
    rtol: float | None = None,
    ulp: int | None = None,
    special: Sequence[str] = (),
) -> Tolerances:
    """The tolerances of a configuration, with those that were typed.

    Raises:
        UsageError: a tolerance of another form.
    """
    atol = settings.get("atol", 0.0) if atol is None else atol
    rtol = settings.get("rtol", 0.0) if rtol is None else rtol
    ulp = settings.get("ulp", 0) if ulp is None else ulp
    if not (atol >= 0 and rtol >= 0 and ulp >= 0):
        raise UsageError("a tolerance is not negative")
    rows = [tolerance_row(glob, value) for glob, value in settings.get("tolerance", {}).items()]
    rows += map(parse_tolerance, special)
    return choose_tolerances(Tolerance("*", atol, rtol, ulp), rows)


def merge_selection(
    settings: Mapping[str, Any],
    *,
    match: Sequence[str] = (),
    ignore: Sequence[str] = (),
    renames: Sequence[str] = (),
) -> Selection:
    """What is compared by a configuration and by what was typed.

    Raises:
        UsageError: a map of another form.
    """
    return Selection(
        match=tuple(match) or tuple(settings.get("match", ())),
        ignore=(*settings.get("ignore", ()), *ignore),
        renames=tuple(map(parse_rename, (*settings.get("map", ()), *renames))),
    )

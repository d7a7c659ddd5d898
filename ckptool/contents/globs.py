"""Globs that match nothing: hints for an option that was probably mistyped.

A glob matches a key path as a whole, which people forget: ``bn`` does not match
``model/bn.weight``, and ``*bn*`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import islice

MAX_NEARBY = 5_000  # names that are compared with a mistyped one
MAX_LENGTH = 200  # characters of such a name: longer ones are not typed
SHOWN_NEARBY = 3


def typable(names: Iterable[str]) -> list[str]:
    """Return the names that the user may have meant, at most ``MAX_NEARBY``."""
    return list(islice((name for name in names if len(name) <= MAX_LENGTH), MAX_NEARBY))


def fits_one(glob: str, names: Iterable[str]) -> bool:
    """Return whether a glob matches one of the names as a whole."""
    return any(fnmatchcase(name, glob) for name in names)


def meant(glob: str, names: Sequence[str], what: str = "key paths") -> str:
    """Return a hint on what to type instead of a glob that matches none of the names.

    Example:
        >>> meant("bn", ["model/bn.weight", "model/bn.bias"])
        "a glob fits whole key paths: try '*bn*'"
        >>> meant("model/bm.bias", ["model/bn.weight", "model/bn.bias"])
        'key paths nearby: model/bn.bias, model/bn.weight'
    """
    bare = glob.strip("*")
    wider = f"*{bare}*"
    if bare and fits_one(wider, names):
        return f"a glob fits whole {what}: try {wider!r}"
    return nearby(glob, names, what)


def nearby(wanted: str, names: Iterable[str], what: str) -> str:
    """Return a hint with the names that are most like one that is not there."""
    from difflib import get_close_matches  # noqa: PLC0415 - 3 ms, for a refusal only

    listed = typable(names)
    near = get_close_matches(wanted, listed, SHOWN_NEARBY, 0.3) or listed[:SHOWN_NEARBY]
    return f"{what} nearby: {', '.join(near) or 'none'}"

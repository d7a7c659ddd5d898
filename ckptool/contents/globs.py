"""Globs that match nothing: hints for an option that was probably mistyped.

A glob matches a key path as a whole, which people forget: ``bn`` does not match
``model/bn.weight``, and ``*bn*`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import islice

from ckptool.regex import regex

MAX_NEARBY = 5_000  # names that are compared with a mistyped one
MAX_LENGTH = 200  # characters of such a name: longer ones are not typed
SHOWN_NEARBY = 3
SHOWN_FIRST = 6
ALIKE = 0.6  # of the letters of a name
SEPARATORS = regex("[/.]")


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
    """Return a hint with the names that are most like one that is not there, or how names begin.

    Example:
        >>> nearby("haed", ["model/head.weight", "model/head.bias"], "key paths")
        "did you mean 'head'?"
        >>> nearby("encoder.*", ["stem.weight", "stem.bias", "head.weight"], "names")
        'names begin with stem, head'
    """
    from difflib import get_close_matches  # noqa: PLC0415 - 3 ms, for a refusal only

    listed, bare = typable(names), wanted.strip("*")
    parts = [SEPARATORS.split(name) for name in listed]
    near = get_close_matches(bare, listed, SHOWN_NEARBY, ALIKE)
    if near or not listed:
        return f"{what} nearby: {', '.join(near) or 'none'}"
    words = dict.fromkeys(word for each in parts for word in each)
    if close := get_close_matches(bare, words, 1, ALIKE):
        return f"did you mean {close[0]!r}?"
    first = list(dict.fromkeys(each[0] for each in parts))
    more = ", …" if len(first) > SHOWN_FIRST else ""
    return f"{what} begin with {', '.join(first[:SHOWN_FIRST])}{more}"

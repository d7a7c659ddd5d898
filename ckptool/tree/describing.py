"""Short texts of what a tree holds, for messages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from ckptool.tree.nodes import GlobalRef, Key, NotedDict, NotedList, Opaque


def as_key(key: Any) -> Key:
    """Return a dict key as a part of a key path: strings and integers unchanged, others as text."""
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool) and key.bit_length() <= MAX_KEY_BITS:
        return key
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return describe(key)


MAX_DESCRIBED = 120  # characters of a text


_BRACKETS: dict[type, tuple[str, str]] = {
    tuple: ("(", ")"), list: ("[", "]"), dict: ("{", "}"), set: ("{", "}"), frozenset: ("{", "}"),
    NotedDict: ("{", "}"), NotedList: ("[", "]"),
}  # fmt: skip


def describe(value: Any, depth: int = 0) -> str:
    """Return a value as short text; a hostile pickle can make its ``repr`` endless."""
    if isinstance(value, int) and value.bit_length() > MAX_KEY_BITS:
        return f"<integer of {value.bit_length()} bits>"
    if isinstance(value, (str, bytes)):
        return repr(value[:MAX_DESCRIBED]) + ("…" if len(value) > MAX_DESCRIBED else "")
    if value is None or isinstance(value, (bool, int, float, complex)):
        return repr(value)
    if isinstance(value, (Opaque, GlobalRef)):
        return f"<{value.qualname}>"
    if depth < 4 and type(value) in _BRACKETS:
        return _enclosed(_described(value, depth + 1), _BRACKETS[type(value)])
    return f"<{type(value).__name__}>"


def _described(value: Any, depth: int) -> list[str]:
    if isinstance(value, dict):
        pairs = islice(value.items(), 9)
        return [f"{describe(key, 4)}: {describe(part, depth)}" for key, part in pairs]
    return [describe(part, depth) for part in islice(value, 9)]


def _enclosed(parts: list[str], brackets: tuple[str, str]) -> str:
    more = ", …" if len(parts) > 8 else ""
    return f"{brackets[0]}{', '.join(parts[:8])}{more}{brackets[1]}"


MAX_KEY_BITS = 1 << 10  # Python refuses to write out integers of 4300 digits


SHOWN = 4  # names in a message


def named(names: Sequence[str], shown: int = SHOWN) -> str:
    """Return the first names and the number of further ones, as text."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest:,} more" if rest > 0 else "")

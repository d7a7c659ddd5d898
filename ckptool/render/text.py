"""Words and numbers for people, and names from files made harmless.

The names in a checkpoint come from strangers. Escape sequences, newlines, bidirectional controls
and megabytes of name must not reach a terminal: every name goes through :func:`printable`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from ckptool.regex import regex

NAME_LIMIT = 160  # characters of a name that are shown on a terminal
WHOLE_LIMIT = 1 << 16  # in a pipe or a file, where people search for names: only a flood is cut

_is_whole: ContextVar[bool] = ContextVar("whole", default=False)


@contextlib.contextmanager
def unshortened(*, whole: bool = True) -> Iterator[None]:
    """Shorten no name and no listing within this context, for pipes and files."""
    before = _is_whole.set(whole)
    try:
        yield
    finally:
        _is_whole.reset(before)


def is_whole() -> bool:
    """Return whether nothing may be shortened; see :func:`unshortened`."""
    return _is_whole.get()


# Categories that draw nothing or steer the terminal: controls, formats (bidi, zero-width),
# surrogates, private use, unassigned, separators, and all spaces except the usual one.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
# Letters and marks that draw nothing all the same: Unicode's Default_Ignorable_Code_Point outside
# these categories (fillers, joiners, variation selectors), and the blank of Braille.
_BLANK = frozenset(
    {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0}
    | {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
)
# What a log obeys: ``::error::`` at the beginning of a line, and ``##[error]``, ``##vso[`` and
# ``##teamcity[`` anywhere.
_OBEYED = regex(r"\A(\s*):(?=:)|#(?=#)")


def printable(text: object, limit: int = NAME_LIMIT) -> str:
    r"""Return ``text`` with everything invisible escaped, and the middle cut out if it is too long.

    What logs of jobs obey is escaped too, since any line may begin with a name.

    Example:
        >>> printable("a\x1b[31mb")
        'a\\x1b[31mb'
        >>> printable("::error::b")
        '\\x3a:error::b'
    """
    raw = str(text)
    limit = max(limit, WHOLE_LIMIT) if is_whole() else limit
    if len(raw) > limit:
        half = limit // 2
        raw = f"{raw[:half]}…{raw[-half:]}"
    if not (raw.isascii() and raw.isprintable()):
        raw = "".join(map(_visible, raw))
    return _OBEYED.sub(_inert, raw) if "##" in raw or "::" in raw else raw


def _inert(found: re.Match[str]) -> str:
    return r"\x23" if found[0] == "#" else rf"{found[1]}\x3a"


def _visible(char: str) -> str:
    import unicodedata  # noqa: PLC0415 - see render/wrapping.py

    code = ord(char)
    if char == " " or (unicodedata.category(char) not in _HIDDEN and code not in _BLANK):
        return char
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(nbytes: float) -> str:
    """Return ``2941129401`` as ``2.74 GiB``."""
    value = float(nbytes)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def count(number: float) -> str:
    """Return ``183815168`` as ``183.8 M``."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if number >= limit:
            scale = limit if unit != "K" else 1e3
            return f"{number / scale:.4g} {unit}"
    return f"{number:g}"


def plural(number: int, noun: str) -> str:
    """Return ``1 tensor``, ``2 tensors``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def value(thing: Any) -> str:
    """Return a scalar from a file as short text."""
    if isinstance(thing, bool) or thing is None:
        return str(thing)
    if isinstance(thing, float):
        return f"{thing:.6g}"
    if isinstance(thing, int):
        return str(thing) if abs(thing) < 10**18 else f"an integer of {thing.bit_length()} bits"
    return printable(thing, 60)


def some(names: tuple[str, ...] | list[str], limit: int = 3) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(printable(name, 60) for name in names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest:,} more" if rest > 0 else shown


LEVELS = "▁▂▃▄▅▆▇"


def level(point: float, low: float, high: float) -> str:
    """Return the bar, as high as a letter, of a number between two others."""
    span = high / 2 - low / 2  # halves, since the whole may be larger than floats are
    return LEVELS[round((len(LEVELS) - 1) * ((point / 2 - low / 2) / span))] if span else LEVELS[0]

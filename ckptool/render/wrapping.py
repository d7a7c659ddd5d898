"""Lines of pieces in a number of columns: measured, cut, padded, wrapped and shortened.

Words and numbers stay whole. Only a word that is wider than the room breaks, behind a sign that
ends a part of a name if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

from ckptool.regex import regex
from ckptool.render.page import Line, Piece

BREAKS = ("/.", "_-,:=")  # behind which a word that is too wide may break, the best first
ELLIPSIS = "…"
UNIT = regex(r"\d (?:[KMGTP]iB|[BKMT%])\b|\d %")  # a number and its unit stay together


def width_of(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_columns, text))


@lru_cache(maxsize=1 << 12)
def _columns(char: str) -> int:
    import unicodedata  # noqa: PLC0415 - for letters beyond ASCII only: a library of 1 MB

    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(line: Line, start: int, end: int) -> Line:
    """Return the characters of a line from ``start`` to ``end``."""
    pieces: list[Piece] = []
    at = 0
    for text, meaning in line.pieces:
        part = text[max(0, start - at) : max(0, end - at)]
        at += len(text)
        if part:
            pieces.append((part, meaning))
    return Line(tuple(pieces), line.wraps)


def joined(*lines: Line | str) -> Line:
    """Return several lines as one."""
    parts = (((each, ""),) if isinstance(each, str) else each.pieces for each in lines)
    return Line(tuple(piece for part in parts for piece in part if piece[0]))


def lines_of(line: Line) -> Iterator[Line]:
    """Yield the parts of a line between its newlines."""
    text = line.text
    if "\n" not in text:  # nearly all, and some pages have millions
        yield line
        return
    ends = [at for at, char in enumerate(text) if char == "\n"]
    for before, end in pairwise([-1, *ends, len(text)]):
        yield cut(line, before + 1, end)


def wrapped(line: Line, width: int, hanging: int = 0) -> Iterator[Line]:
    """Yield a line in parts of at most ``width`` columns; all but the first are indented."""
    text = line.text
    if width_of(text) <= width:
        yield line
        return
    indent = " " * (len(text) - len(text.lstrip(" ")) + hanging)
    indent = indent if 2 * len(indent) < width else ""
    start = 0
    while start < len(text):
        room = width - len(indent) if start else width
        end, begin = _break(text, start, room)
        part = cut(line, start, end)
        yield joined(indent, part) if start else part
        start = begin


def _break(text: str, start: int, room: int) -> tuple[int, int]:
    """Return the end of a line that begins at ``start``, and the beginning of the next one."""
    if 2 * (len(text) - start) <= room:  # no character takes more; a pipe has any room
        return len(text), len(text)
    end = _end(text, start, room)
    if end == len(text):
        return end, end
    blank = text.rfind(" ", start, end + 1)
    while blank > start and UNIT.match(text, blank - 1):
        blank = text.rfind(" ", start, blank)
    if blank > start and text[start:blank].strip():
        return start + len(text[start:blank].rstrip(" ")), blank + 1
    for signs in BREAKS:
        behind = max(text.rfind(sign, start, end) for sign in signs) + 1
        if behind > start + room // 3:
            return behind, behind
    end = max(end, start + 1)
    return end, end


def _end(text: str, start: int, room: int) -> int:
    """Return the end of the characters from ``start`` that fit into so many columns."""
    if text[start : start + room + 1].isascii():
        return min(start + max(room, 0), len(text))
    used, end = 0, start
    while end < len(text) and used + _columns(text[end]) <= room:
        used += _columns(text[end])
        end += 1
    return end


def shortened(name: str, width: int) -> str:
    """Return a name with its middle left out at dots or slashes: ``blocks.3…in_proj_bias``."""
    if width_of(name) <= width:
        return name
    ends = [at + 1 for at, char in enumerate(name) if char in "/."]
    room = width - 1
    for tail in ends:  # the longest end that leaves a third for the beginning
        end = name[tail:]
        if width_of(end) <= room:
            head = max((at - 1 for at in ends if at <= tail and _fits(name[: at - 1], room, end)),
                       default=0)  # fmt: skip
            if head or width_of(end) > room // 2:
                return f"{name[:head]}{ELLIPSIS}{end}"
    start, end = "", ""
    for front, back in zip(name, reversed(name), strict=True):
        if width_of(start + front + end) > room:
            break
        start += front
        if width_of(start + back + end) > room:
            break
        end = back + end
    return f"{start}{ELLIPSIS}{end}"


def _fits(start: str, room: int, end: str) -> bool:
    return width_of(start) + width_of(end) <= room

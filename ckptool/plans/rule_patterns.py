"""Patterns of names in rules: ``*`` for any text, ``#`` for the numbers 0, 1, 2, … ."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ckptool.errors import UsageError
from ckptool.records import NamedTuple
from ckptool.regex import regex

_MARK = regex(r"[*#]")
_AXIS = regex(r"(.*?)(?:@(\+?)(-?\d{1,3}))?", re.DOTALL)


class Axis(NamedTuple):
    """The dimension along which tensors are cut or joined."""

    number: int = 0  # negative: from the last one
    is_new: bool = False  # joins make it, splits remove it

    def of(self, ndim: int) -> int:
        """Return its number in a tensor of ``ndim`` dimensions, this one included.

        Raises:
            UsageError: there is no such dimension.
        """
        at = self.number + ndim if self.number < 0 else self.number
        if not 0 <= at < ndim:
            raise UsageError(f"a tensor of {ndim} dimensions has no dimension {self.number}")
        return at


class Match(NamedTuple):
    """The texts that the marks of a pattern have in a name."""

    stars: tuple[str, ...]
    number: int | None  # for the #


class Pattern:
    """A pattern of names with at most one ``#``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._marks = _MARK.findall(text)
        self.stars = self._marks.count("*")
        self.has_number = "#" in self._marks
        if not text or self._marks.count("#") > 1:
            raise UsageError(
                f"{text!r} is no pattern of names: it is empty, or has more than one #"
            )
        parts = [re.escape(part) for part in _MARK.split(text)]
        kinds = ["(.*)" if mark == "*" else r"(0|[1-9]\d{0,8})" for mark in self._marks]
        self._regex = re.compile("".join(a + b for a, b in zip(parts, [*kinds, ""], strict=True)))

    def match(self, name: str) -> Match | None:
        """Return the texts of the marks; None if the name is another one."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        pairs = list(zip(found.groups(), self._marks, strict=True))
        numbers = [int(text) for text, mark in pairs if mark == "#"]
        stars = tuple(text for text, mark in pairs if mark == "*")
        return Match(stars, numbers[0] if numbers else None)

    def filled(self, stars: Sequence[str], number: int | None = None) -> str:
        """Return the name with these texts for its stars, and the number for ``#``."""
        given = iter(stars)
        return _MARK.sub(lambda mark: next(given) if mark[0] == "*" else str(number), self.text)


def sides_of(text: str, form: str) -> tuple[list[str], list[str], Axis]:
    """Return the names on both sides of a rule ``A,B=C,D@AXIS``.

    Raises:
        UsageError: it is not written so; ``form`` says how.
    """
    found = _AXIS.fullmatch(text)
    assert found is not None
    left, mark, right = found[1].partition("=")
    if not (mark and left.strip() and right.strip()):
        raise UsageError(f"{text!r} is not {form}")
    axis = Axis(int(found[3] or 0), bool(found[2]))
    return names_of(left), names_of(right), axis


def names_of(text: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name.strip() for name in text.split(",")]


def check_stars(sources: Sequence[Pattern], targets: Sequence[Pattern]) -> None:
    """Check that each ``*`` on the right stands for one on the left.

    Raises:
        UsageError: the sides have different numbers of them.
    """
    if len({pattern.stars for pattern in (*sources, *targets)}) > 1:
        raise UsageError(
            "all names of a rule have the same number of *",
            hint="each * on the right takes the text of the * at its place on the left",
        )

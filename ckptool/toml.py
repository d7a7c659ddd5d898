"""TOML of rules and of configurations, which may lie in a download, read within a limit of work."""

from __future__ import annotations

from typing import Any

MAX_DOTS = 1 << 12  # in a line, or as much work in several


def load_toml(text: str) -> dict[str, Any]:
    """Return what ``tomllib.loads`` makes of a text, unless that would take minutes.

    The parser's work on a key grows with the square of its parts. Dots inside of strings count too.

    Raises:
        ValueError: the text is no TOML, is nested without end, or has longer keys than any real
            one.
    """
    import tomllib  # noqa: PLC0415 - 6 ms

    if sum(line.count(".") ** 2 for line in text.splitlines()) > MAX_DOTS**2:
        raise ValueError("it has lines with more dots than keys have")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested without end") from error

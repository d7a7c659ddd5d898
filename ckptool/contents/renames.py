"""Maps of names by regular expressions, as users type them: ``--map 'REGEX=REPL'``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckptool.errors import UsageError

Rename = tuple[re.Pattern[str], str]


def parse_rename(text: str) -> Rename:
    """Parse ``REGEX=REPL``, cut at the last ``=``.

    Raises:
        UsageError: there is no ``=``, or the regular expression or replacement is invalid.
    """
    pattern, mark, replacement = text.rpartition("=")
    if not mark or not pattern:
        raise UsageError(f"a map is REGEX=REPL, not {text!r}")
    try:
        compiled = re.compile(pattern)
        compiled.sub(replacement, "")
        re.compile(f"{pattern}|").sub(replacement, "")  # a replacement is only parsed when used
    except (re.error, IndexError) as error:
        raise UsageError(f"--map {text!r}: {error}") from error
    return compiled, replacement


def renamed_by(renames: Iterable[Rename], name: str) -> str:
    """Return a name after all maps, in their order."""
    for pattern, replacement in renames:
        name = pattern.sub(replacement, name)
    return name

"""Completion of words on the command line: rules, requirements, and places in a checkpoint.

Shells evaluate what completion prints, and the keys of a checkpoint come from strangers. So only
words of plain letters, digits and a few signs are offered; others are typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckptool.regex import regex

PLAIN = regex(r"[\w./@:+#~-]+", re.ASCII)  # nothing that a shell expands or splits at
MOST = 500  # words that are offered


def rules(incomplete: str) -> list[str]:
    """Return the ids of rules; behind a comma, too."""
    from ckptool.reports.rules import BY_ID

    return _listed(incomplete, BY_ID)


def requirements(incomplete: str) -> list[str]:
    """Return what ``--require`` takes; behind a comma, too."""
    from ckptool.commands.verify import requirement_names

    return _listed(incomplete, requirement_names())


def forms(incomplete: str) -> list[str]:
    """Return the forms of answers that ``--format`` takes."""
    from ckptool.render.outputs import FORMS

    return [form for form in FORMS if form.startswith(incomplete)]


def _listed(incomplete: str, words: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    fits = [word for word in words if word.startswith(last)]
    return [f"{before}{comma}{word}" for word in fits]


def operands(incomplete: str) -> list[str]:
    """Return the places of a checkpoint that begin so; before a #, leave paths to the shell."""
    path, sign, address = incomplete.partition("#")
    if not sign or not path:
        return []
    container, _, begun = address.rpartition("/")
    try:
        keys = _keys(path, container)
    except Exception:  # noqa: BLE001 - a shell that waits for words has no use for an error
        return []
    start = f"{path}#{container}/" if container else f"{path}#"
    words = [start + key for key in keys if key.startswith(begun)]
    return [word for word in words if PLAIN.fullmatch(word)][:MOST]


def _keys(path: str, container: str) -> list[str]:
    """Return the keys of a container; a slash ends those of containers with keys of their own."""
    from ckptool.commands.operands import keys_at

    return keys_at(path, container)

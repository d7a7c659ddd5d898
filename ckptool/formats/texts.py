"""Text that trainers write beside weights, read as numbers, bools, words and containers of them.

All JSON of a file goes through ``load_json``: three bytes of it can be a container of 64, so that
what fits into a limit of bytes need not fit into the memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ckptool.errors import DamagedError
from ckptool.regex import regex
from ckptool.tree.nodes import Tree

MAX_NESTING = 100  # levels of JSON
MAX_CONTAINERS = 3 << 20  # lists and objects in a document: a header of a million tensors has three
MAX_VALUES = 1 << 24  # and values in them
LINE = regex(r"(?P<name>[A-Za-z_][\w.\- ]*): *(?P<value>.*)")
WORDS = {"true": True, "false": False, "null": None, "~": None}


def is_header(head: bytes) -> bool:
    """Return whether a file begins as safetensors: with a length below 2^48, and a ``{``.

    Text has no zero bytes there, and no disk holds a longer header.
    """
    return head[6:9] == b"\0\0{"


def load_json(text: str | bytes, **hooks: Any) -> Any:
    """Return what ``json.loads`` makes of a text, unless that would take gigabytes.

    Brackets and commas inside of strings count too: the limits are far above real documents.

    Raises:
        ValueError: the text is no JSON, is nested without end, or has more containers or values
            than any real one.
    """
    import json  # noqa: PLC0415 - 2 ms, and a torch zip has none

    if isinstance(text, str):
        containers, values = text.count("[") + text.count("{"), text.count(",")
    else:
        containers, values = text.count(b"[") + text.count(b"{"), text.count(b",")
    if containers > MAX_CONTAINERS or values > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_CONTAINERS:,} containers or {MAX_VALUES:,} values")
    try:
        return json.loads(text, **hooks)
    except RecursionError as error:
        raise ValueError("it is nested without end") from error


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs.

    Raises:
        ValueError: a key comes twice.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"it has the key {twice!r:.100} twice; readers would disagree")
    return made


def json_object(text: bytes, what: str, **hooks: Any) -> dict[str, Any]:
    """Return a JSON object in UTF-8, in which no key comes twice.

    Raises:
        DamagedError: ``what`` is none.
    """
    try:
        fields = load_json(text.decode(), **{"object_pairs_hook": without_repeats, **hooks})
    except ValueError as error:
        raise DamagedError(f"{what} cannot be read as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DamagedError(f"{what} is no JSON object")
    return fields


def from_json(text: str) -> Tree:
    """Return a JSON document: containers, strings, numbers and bools.

    Raises:
        ValueError: the text is no JSON, or nested deeper than any trainer's.
    """
    document = load_json(text)
    level: list[Any] = [document]
    for _ in range(MAX_NESTING):
        level = [part for node in level for part in _inside(node)]
    if level:
        raise ValueError("nested too deep")
    return document


def _inside(node: Any) -> Iterator[Any]:
    if isinstance(node, (dict, list)):
        yield from node.values() if isinstance(node, dict) else node


def from_lines(text: str) -> Tree:
    """Return the values of SpeechBrain's flat YAML: ``name: value`` a line, or one value."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    matches = [LINE.fullmatch(line.rstrip()) for line in lines]
    if lines and all(matches):
        return {match["name"]: _scalar(match["value"]) for match in matches if match}
    return _scalar(text.strip()) if len(lines) == 1 else text


def _scalar(text: str) -> Tree:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text.strip("'\"")

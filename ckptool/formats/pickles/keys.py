"""Keys of pickled dicts that are objects: a loader may find one equal to another key.

Plain keys (text, numbers, bytes, None, tuples of them) are kept as they are, so that Python's rules
hold: 1, ``True`` and 1.0 are one key, of which the first stays and the last value wins; ``"w"`` and
``b"w"`` are two. An object is made by a class that is not loaded. A subclass of ``str`` equals
text, a member of a ``str`` enum equals its value, and the result of a function may be anything. So
a dict whose entries may be one for a loader is refused: its values could not be told apart.
"""

from __future__ import annotations

from typing import Any

from ckptool.errors import DamagedError
from ckptool.tree.describing import describe
from ckptool.tree.nodes import Opaque, is_plain
from ckptool.tree.walking import walk

MAX_PARTS = 16  # arguments of an object that are compared
# Modules whose functions compute text and numbers; constructors are compared by their arguments.
_COMPUTING = frozenset(
    {"builtins", "__builtin__", "operator", "_operator", "functools", "string", "re", "itertools",
     "os", "posixpath", "ntpath", "codecs", "_codecs", "copy", "urllib.parse", "textwrap"}
)  # fmt: skip
_CONSTRUCTORS = frozenset(
    f"{builtins}.{name}"
    for builtins in ("builtins", "__builtin__")
    for name in ("str", "int", "float", "bool", "complex", "bytes", "unicode", "long", "frozenset",
                 "range", "slice", "getattr", "object")
)  # fmt: skip


def refuse_equal_keys_in(tree: Any) -> None:
    """Refuse a tree with a dict in which an object as a key may equal another key.

    Raises:
        DamagedError: there is such a dict.
    """
    for visit in walk(tree):
        node = visit.node.items if isinstance(visit.node, Opaque) else visit.node
        if isinstance(node, dict):
            refuse_equal_keys(node)


def refuse_equal_keys(table: dict[Any, Any]) -> None:
    """Refuse a dict in which an object as a key may equal another key.

    Raises:
        DamagedError: there is such a key.
    """
    texts = {_text(key): key for key in table if not isinstance(key, Opaque)}
    for key in table:
        if not isinstance(key, Opaque):
            continue
        if _may_be_anything(key) and len(table) > 1:
            raise _refusal(key, next(other for other in table if other is not key))
        for text in _texts(key):
            if texts.setdefault(text, key) is not key:
                raise _refusal(key, texts[text])


def _refusal(key: Opaque, other: Any) -> DamagedError:
    shown = f"{key.qualname:.80}({', '.join(map(describe, key.args[:3]))})"
    return DamagedError(
        f"a dict has the keys {describe(other)} and {shown}, which a loader may take for one",
        hint="load the file with torch in a sandbox, and save it with keys that are text",
    )


def _may_be_anything(key: Opaque) -> bool:
    """Return whether a function computes the key, not a class from its arguments."""
    if not key.called or key.qualname in _CONSTRUCTORS:
        return False
    return key.qualname.startswith("<") or key.qualname.rpartition(".")[0] in _COMPUTING


def _texts(key: Opaque) -> list[str]:
    """Return the texts of the plain values that an object was made from."""
    parts = (*key.args[:MAX_PARTS], *list(key.kwargs.values())[:MAX_PARTS])
    return [_text(part) for part in parts if is_plain(part) or isinstance(part, bytes)]


def _text(value: Any) -> str:
    """Return a plain value as text: ``str``, ``int`` and ``bytes`` make each other of it."""
    if isinstance(value, bytes):
        return value[:MAX_TEXT].decode("latin-1")
    if isinstance(value, complex) and not value.imag:
        value = value.real
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return value[:MAX_TEXT] if isinstance(value, str) else describe(value)


MAX_TEXT = 1000  # characters of a key that are compared

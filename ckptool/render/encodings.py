"""Pages for streams whose encoding lacks characters, such as ASCII and Latin-1.

The signs that pages are drawn with are replaced by plain ones, so that columns stay aligned. Other
characters that a stream cannot take are escaped as Python escapes them. No answer ends in the
middle because of a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import IO

from ckptool.render.page import Page
from ckptool.render.page import fitted as with_texts

ERRORS = "ckptool"  # the name of the error handler

PLAIN: Mapping[str, str] = {
    "…": "...", "→": "->", "×": "x", "–": "-", "—": "-", "·": "-", "’": "'",
    "█": "#", "▉": "#", "▊": "#", "▋": "#", "▌": "=", "▍": "-", "▎": "-", "▏": "-",
    "▁": "_", "▂": ".", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "#",
    "✅": "[x]", "❌": "[!]", "⬜": "[ ]", "⚠": "!", "ℹ": "i", "\ufe0f": "",
}  # fmt: skip
FILE_NAME_BYTES = range(0xDC80, 0xDD00)  # surrogates for the bytes of file names that are no text


def replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace one character that an encoding lacks; a handler for :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    if ord(char) in FILE_NAME_BYTES:
        return bytes([ord(char) - 0xDC00]), error.start + 1
    if char in PLAIN:
        return PLAIN[char], error.start + 1
    return char.encode("ascii", "backslashreplace").decode("ascii"), error.start + 1


codecs.register_error(ERRORS, replaced)


def fitted(page: Page, stream: IO[str]) -> Page:
    """Return a page, before it is laid out, in characters that the stream can show."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return page if _has_all(encoding) else with_texts(page, lambda text: _shown(text, encoding))


def _has_all(encoding: str) -> bool:
    try:
        "".join(PLAIN).encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str, encoding: str) -> str:
    return (
        text
        if text.isascii()
        else text.encode(encoding, ERRORS).decode(encoding, "surrogateescape")
    )

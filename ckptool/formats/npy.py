r"""Arrays of numpy in other files: ``numpy.load`` unpickles those of objects.

Layout: ``\x93NUMPY``, the version, the length of a text (2 bytes in version 1, else 4), the text,
then the values. Those of an array of objects are one pickle. ``numpy.load`` takes any zip for an
archive of arrays, and a member for an array by its first bytes, whatever it is called.

Source: numpy 2.4 ``numpy/lib/_format_impl.py``, ``NpzFile.__getitem__`` in ``_npyio_impl.py``.
"""

from __future__ import annotations

from ckptool.regex import regex

MAGIC = b"\x93NUMPY"
HEAD_BYTES = 12
MAX_TEXT = 1 << 16  # bytes of a header that is looked at for the dtype
_MAY_BE_OBJECTS = regex(rb"[oO\\]")  # O, object, or an escape that could spell it


def values_at(head: bytes) -> int | None:
    """Return where the values of an array begin; None if no array begins with these bytes."""
    if not head.startswith(MAGIC) or len(head) < HEAD_BYTES:
        return None
    width = 2 if head[6] == 1 else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")


def may_hold_objects(text: bytes) -> bool:
    """Return whether the dtype in the text of a header may be one of objects."""
    return bool(_MAY_BE_OBJECTS.search(text.replace(b"fortran_order", b"")))

r"""Arrays of numpy in other files: ``numpy.load`` unpickles those of objects.

Layout: ``\x93NUMPY``, the version, the length of a text (2 bytes in version 1, else 4), the text,
then the values. Those of an array of objects are one pickle. ``numpy.load`` takes any zip for an
archive of arrays, and a member for an array by its first bytes, whatever it is called.

Source: numpy 2.4 ``numpy/lib/_format_impl.py``, ``NpzFile.__getitem__`` in ``_npyio_impl.py``.
"""

from __future__ import annotations

MAGIC = b"\x93NUMPY"
HEAD_BYTES = 12


def values_at(head: bytes) -> int | None:
    """Return where the values of an array begin; None if no array begins with these bytes."""
    if not head.startswith(MAGIC) or len(head) < HEAD_BYTES:
        return None
    width = 2 if head[6] == 1 else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")

"""CRC-32, the checksum of zip records, at the speed of memory where that can be had.

zlib reads 2.5 GB a second, Intel's ISA-L 12 (measured on an EPYC): where every byte of a checkpoint
is read for its checksum, zlib alone took a quarter of the time. ISA-L comes as a wheel for the
usual machines, and is imported when something large is read (4 ms), never by ``inspect``. With it
comes ``crc32_combine(one, other, nbytes_of_other)``, the sum of two runs from theirs; None without.
"""

from __future__ import annotations

from collections.abc import Callable

try:
    from isal.isal_zlib import crc32
    from isal.isal_zlib import crc32_combine as _combine
except ImportError:  # a machine without a wheel: the same sums, later
    from zlib import crc32

    crc32_combine: Callable[[int, int, int], int] | None = None
else:
    crc32_combine = _combine

__all__ = ["crc32", "crc32_combine"]

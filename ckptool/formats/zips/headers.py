"""The structures of a zip archive, for reading and for writing (APPNOTE.TXT 6.3.10, 4.3).

Each begins with its signature. ``LOCAL`` precedes the data of a record, ``CENTRAL`` is in the
directory.
"""

from __future__ import annotations

from struct import Struct

LOCAL = Struct("<4s5H3I2H")
CENTRAL = Struct("<4s6H3I5H2I")
END = Struct("<4s4H2IH")
ZIP64_END = Struct("<4sQ2H2I4Q")
ZIP64_LOCATOR = Struct("<4sIQI")

UINT16_MAX, UINT32_MAX = 0xFFFF, 0xFFFFFFFF  # small fields hold them if 64 bits are needed

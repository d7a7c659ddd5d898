"""Records of a zip that share bytes where only the local headers tell: promotion writes neither."""

from __future__ import annotations

import struct
import zipfile
import zlib

from helpers.assembler import call, integer, integers, mapping, name, program, row, text, zipped

COUNT = 16  # elements of each storage
HEADER = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
MODEL, AVERAGE, OTHER = "0", "1", "9"


def _tensor(key: str) -> bytes:
    place = (text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), integer(COUNT))
    hooks = call(name("collections", "OrderedDict"))
    view = (row(*place) + b"Q", integer(0), integers(COUNT), integers(1), b"\x89", hooks)
    return call(name("torch._utils", "_rebuild_tensor_v2"), *view)


BODY = mapping(
    (text("model"), mapping((text("w"), _tensor(MODEL)))),
    (text("ema"), mapping((text("w"), _tensor(AVERAGE)))),
    (text("x"), _tensor(OTHER)),
)


def _header(record: str, data: bytes, extra: int) -> bytes:
    crc, size = zlib.crc32(data), len(data)
    fields = (b"PK\3\4", 20, 0, 0, 0, 0, crc, size, size, len(record), extra)
    return HEADER.pack(*fields) + record.encode()


def _archive(records: list[tuple[str, int, bytes]], content: bytes) -> bytes:
    """An archive whose directory lists (name, offset of the header, data)."""
    entries = b""
    for record, at, data in records:
        crc, size = zlib.crc32(data), len(data)
        fields = (b"PK\1\2", 20, 20, 0, 0, 0, 0, crc, size, size, len(record), 0, 0, 0, 0, 0, at)
        entries += CENTRAL.pack(*fields) + record.encode()
    counts = (0, 0, len(records), len(records), len(entries), len(content), 0)
    return content + entries + struct.pack("<4s4H2IH", b"PK\5\6", *counts)


def _overlapping() -> bytes:
    """The model's values hold the header of another record; the average's hold another header."""
    content = bytearray()
    records: list[tuple[str, int, bytes]] = []

    def add(record: str, data: bytes) -> None:
        records.append((record, len(content), data))
        content.extend(_header(record, data, 0) + data)

    def floats(value: float) -> bytes:
        return struct.pack(f"<{COUNT}f", *[value] * COUNT)

    add("a/data.pkl", program(BODY, 2))
    others = floats(5)
    inner = _header(f"a/data/{OTHER}", others, 0)
    before = bytes(64 - len(inner))
    ours, theirs = before + inner, before + inner[:28] + b"\4\0" + inner[30:]  # 4 bytes further on
    add(f"a/data/{AVERAGE}", theirs)
    at = len(content)
    gap = 40  # of extra bytes in the local header, so that the next header may lie in the data
    content.extend(_header(f"a/data/{MODEL}", ours, gap) + bytes(gap))
    records.append((f"a/data/{MODEL}", at, ours))
    records.append((f"a/data/{OTHER}", len(content) + len(before), others))
    content.extend(ours + others + bytes(8))
    add("a/version", b"3\n")
    return _archive(records, bytes(content))


def test_values_that_hold_the_header_of_another_record_stay(ckptool, tmp_path):
    path, output = tmp_path / "overlap.pt", tmp_path / "out.pt"
    path.write_bytes(_overlapping())
    done = ckptool("promote-ema", path, "-o", output, "--ema", "ema", "--model", "model", "--json")
    assert done.exit_code == 2
    assert f"'a/data/{MODEL}' reaches into what follows it" in done.json["error"]["message"]
    assert not output.exists()


def test_records_side_by_side_are_written(ckptool, tmp_path):
    path, output = tmp_path / "sound.pt", tmp_path / "out.pt"
    values = {key: struct.pack(f"<{COUNT}f", *range(COUNT)) for key in (MODEL, AVERAGE, OTHER)}
    values[AVERAGE] = struct.pack(f"<{COUNT}f", *(n + 0.5 for n in range(COUNT)))
    path.write_bytes(zipped(program(BODY, 2), values))
    done = ckptool("promote-ema", path, "-o", output, "--ema", "ema", "--model", "model")
    assert done.exit_code == 0
    with zipfile.ZipFile(output) as archive:
        assert archive.read(f"archive/data/{MODEL}") == values[AVERAGE]
        assert archive.read(f"archive/data/{OTHER}") == values[OTHER]

"""What was cast on the way is read back and held against its checksum."""

from __future__ import annotations

import zlib

import pytest

from ckptool.errors import CkptError
from ckptool.tensors.crc import checksum
from ckptool.writers.values import WrittenRun, check_runs

DATA = bytes(range(256)) * 40


def test_the_checksum_is_taken_in_blocks():
    data = DATA * (10 * (1 << 20) // len(DATA) + 1)
    asked = []

    def read(at: int, size: int) -> bytes:
        asked.append(size)
        return data[at : at + size]

    assert checksum(read, len(data)) == zlib.crc32(data)
    assert len(asked) > 1
    assert sum(asked) == len(data)
    assert checksum(read, 0) == 0


@pytest.fixture
def runs():
    return [
        WrittenRun(at, size, zlib.crc32(DATA[at : at + size])) for at, size in ((0, 9), (100, 5000))
    ]


def test_what_is_as_written_passes(runs, tmp_path):
    (tmp_path / "out").write_bytes(DATA)
    check_runs(tmp_path / "out", runs)


@pytest.mark.parametrize("at", [0, 8, 100, 5099])
def test_one_byte_that_differs_is_an_error(at, runs, tmp_path):
    changed = bytearray(DATA)
    changed[at] ^= 1
    (tmp_path / "out").write_bytes(changed)
    with pytest.raises(CkptError):
        check_runs(tmp_path / "out", runs)


def test_other_bytes_are_not_asked(runs, tmp_path):
    changed = bytearray(DATA)
    changed[50] ^= 1
    (tmp_path / "out").write_bytes(changed)
    check_runs(tmp_path / "out", runs)

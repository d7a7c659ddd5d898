"""The checksum is zlib's, wherever it comes from, and what inspect needs leaves it out."""

from __future__ import annotations

import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.tensors.crc import Seen, crc32
from helpers.output import environment
from helpers.paths import FIXTURES

PATH = FIXTURES / "ema" / "has_ema" / "late.pt"
WITHOUT = "import sys; sys.modules['isal'] = None; "


@given(st.binary(), st.integers(0, 2**32 - 1), st.sampled_from([bytes, bytearray, memoryview]))
def test_it_is_the_one_of_zlib(data, before, kind):
    assert crc32(kind(data), before) == zlib.crc32(data, before)


@pytest.mark.parametrize("args", [["verify", "--bytes"], ["extract-ema", "--dry-run"]])
def test_a_machine_without_the_fast_one_answers_the_same(args):
    call = f"from ckptool.cli import main; sys.exit(main({[args[0], str(PATH), *args[1:]]!r}))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code + call],
            env=environment(), capture_output=True, text=True, check=True,
        ).stdout
        for code in ("import sys; ", WITHOUT)
    ]  # fmt: skip
    assert told[0] == told[1] != ""


def test_inspect_does_without():
    code = "import sys; from ckptool.cli import main; main(sys.argv[1:]); print('isal' in "
    code += "sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(PATH)],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.splitlines()[-1] == "False"


@given(st.lists(st.binary(max_size=300) | st.just(b"\x93n"), max_size=5))
def test_runs_behind_each_other(parts):
    seen = Seen()
    for part in parts:
        begins_so = part[:1] == b"\x93"
        found = Seen(len(part), crc32(part), b"n" not in part, begins_so)
        seen = seen.then(found)
    whole = b"".join(parts)
    assert seen[:4] == (len(whole), zlib.crc32(whole), b"n" not in whole, whole[:1] == b"\x93")


@pytest.mark.parametrize("nbytes", [1, 1 << 20, (1 << 35) + 12345])
def test_runs_of_any_length(nbytes):
    """A run of zeros is a shift, which two halves do as well as the whole."""
    halves = nbytes // 2, nbytes - nbytes // 2
    zeros = zlib.crc32(bytes(4096))
    start = Seen(4096, zeros)
    if nbytes <= 1 << 20:
        assert start.then(Seen(nbytes, zlib.crc32(bytes(nbytes)))).crc == zlib.crc32(
            bytes(4096 + nbytes)
        )
    by_halves = start.then(Seen(halves[0], 0)).then(Seen(halves[1], 0))
    assert by_halves == start.then(Seen(nbytes, 0))

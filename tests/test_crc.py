"""The checksum is zlib's, wherever it comes from, and what inspect needs leaves it out."""

from __future__ import annotations

import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.crc import crc32
from output import environment
from paths import FIXTURES

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

"""Pickles that ckptool refuses are followed for their names as Python's unpicklers follow them."""

from __future__ import annotations

import io
import pickle

import pytest

from ckptool.errors import CkptError
from ckptool.formats.pickles.following import Follower
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.sources.memory import Memory

NUMBERS = [
    b"I10\n", b"I0x1F\n", b"I0o17\n", b"I0b11\n", b"I010\n", b"I-010\n", b"I 5\n", b"I5\r\n",
    b"I1_0\n", b"I1\0junk\n", b"I+0x1\n", b"I\n", b"Ilove\n", b"I1.5\n", b"I0xg\n", b"I08\n",
    b"L10L\n", b"L10\n", b"L0x10L\n", b"L 1_0L\n", b"L1LL\n", b"L" + b"1" * 4200 + b"L\n",
    b"L" + b"1" * 4400 + b"L\n", b"F1.5\n", b"Finf\n", b"F1.5\0junk\n", b"Friday\n",
]  # fmt: skip


def judged(data: bytes):
    """What an unpickler makes of it: C's, or else Python's."""
    for load in (pickle.loads, lambda data: pickle._Unpickler(io.BytesIO(data)).load()):
        try:
            return load(data)
        except Exception:  # noqa: BLE001 - what it refuses is no number
            continue
    return None


@pytest.mark.parametrize("line", NUMBERS, ids=lambda line: repr(line[:12]))
def test_numbers_are_those_of_pythons_unpicklers(line):
    try:
        made = PickleMachine(Memory(line + b"."), builder=Follower()).run()
    except CkptError:
        made = None
    assert made == judged(line + b".")


@pytest.mark.parametrize(
    "begin", [b"](K\1eK\0K\2s", b"N(u", b"N(e", b"\x96\1\0\0\0\0\0\0\0aK\1a", b"}]Ns"]
)
def test_what_is_set_anywhere_hides_no_name_behind_it(begin):
    machine = PickleMachine(Memory(begin + b"cos\nsystem\n."), builder=Follower())
    machine.run()
    assert [ref.qualname for ref in machine.globals] == ["os.system"]

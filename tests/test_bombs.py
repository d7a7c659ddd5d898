"""Small files that would grow: each is over within the limits of time and memory.

Made when needed: 60 MB of the same few instructions. Measured in a process of its own.
"""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from output import environment

SIZE = 60_000_000
MEMORY = 2 << 20  # KiB
SECONDS = 20  # of the processor
SYSTEM, OBJECT, ORDERED = (
    b"cos\nsystem\nq\x00",
    b"ca\nB\nq\x00",
    b"ccollections\nOrderedDict\nq\x00",
)


def many(unit: bytes, head: bytes = b"](", tail: bytes = b"e") -> bytes:
    return b"\x80\x04" + head + unit * (SIZE // len(unit)) + tail + b"."


def batches(unit: bytes) -> bytes:
    """Lists of a thousand, as picklers write them: the stack stays small."""
    batch = b"(" + unit * 1000 + b"e"
    return b"\x80\x04]" + batch * (SIZE // len(batch)) + b"."


def clashing() -> bytes:
    """A million integers with one hash."""
    keys = (b"\x8a\x0b" + (i * ((1 << 61) - 1)).to_bytes(11, "little") for i in range(1_000_000))
    return b"\x80\x04}(" + b"".join(key + b"N" for key in keys) + b"u."


def named() -> bytes:
    """Six million classes."""
    return b"\x80\x04(" + b"".join(b"ca\n%x\n" % i for i in range(SIZE // 10)) + b"l."


def memorized() -> bytes:
    """Twelve million memo entries, in no order, up to the highest index."""
    puts = (b"r" + struct.pack("<I", i * 2654435761 & 0xFFFFFFFF) for i in range(SIZE // 5))
    return b"\x80\x04N" + b"".join(puts) + b"."


def header(text: bytes) -> bytes:
    """A safetensors file without values."""
    return struct.pack("<Q", len(text)) + text


BOMBS = {
    "dicts on the stack": lambda: many(b"}", b"", b""),
    "marks": lambda: many(b"(", b"", b""),
    "copies of the top": lambda: many(b"2", b"]", b""),
    "push and pop": lambda: many(b"N0", b"", b"N"),
    "a list of lists": lambda: batches(b"]"),
    "a list of sets": lambda: batches(b"\x8f"),
    "a list of bytes": lambda: batches(b"C\x01a"),
    "a list of texts": lambda: batches(b"\x8c\x03abc"),
    "a list of integers": lambda: batches(b"M\xff\xff"),
    "a list of nothing": lambda: batches(b"N"),
    "a list of one text": lambda: b"\x80\x04" + b"X\xa0\x86\x01\0" + b"a" * 100_000 + b"q\x000"
    + batches(b"h\x00")[2:],
    "a list of tuples": lambda: batches(b"N\x85"),
    "calls": lambda: many(b"h\x00)R", SYSTEM + b"]("),
    "calls thrown away": lambda: many(b"h\x00)R0", SYSTEM, b""),
    "objects": lambda: many(b"h\x00)\x81", OBJECT + b"]("),
    "ordered dicts": lambda: many(b"h\x00)R", ORDERED + b"]("),
    "nested lists": lambda: b"\x80\x04" + b"]" * (SIZE // 2) + b"a" * (SIZE // 2 - 1) + b".",
    "nested tuples": lambda: many(b"\x85", b"N", b""),
    "a long integer": lambda: b"\x80\x04\x8b" + struct.pack("<i", SIZE) + b"\x7f" * SIZE + b".",
    "clashing keys": clashing,
    "classes": named,
    "memo": memorized,
    "a header of empty lists": lambda: header(b'{"a":[' + b"[]," * (SIZE // 3) + b"1]}"),
    "a header of text": lambda: header(
        b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(SIZE // 11)) + b"}}"
    ),
}  # fmt: skip


ONE_LONG_TEXT = b"\x80\x04X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x000"
NUMBERS = b"\x80\x04](" + b"".join(b"M" + struct.pack("<H", i % 60_000) for i in range(100_000))

# Small files that inspect shows at once, and that share what a comparison has to spell out.
SHARED = {
    "an argument of many objects": ONE_LONG_TEXT + b"cm\nA\nq\x010](" + b"h\x01h\x00\x85\x81" * 5000
    + b"e.",
    "a key of many dicts": ONE_LONG_TEXT + b"](" + b"}(h\x00K\x01K\x02K\x03u" * 2000 + b"e.",
    "a state of a set of objects": NUMBERS + b"eq\x000cm\nA\nq\x010\x8f("
    + b"h\x01)\x81h\x00b" * 3000 + b"\x90.",
}  # fmt: skip


# A child's peak begins with that of the process it was forked from, so a small one stands between.
DRIVER = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_maxrss, used.ru_utime + used.ru_stime)
"""


def measured(*args: str) -> list[str]:
    """(exit code, KiB, seconds of the processor) of a command."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, sys.executable, "-m", "ckptool", *args],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_over_within_the_limits(name, tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[name]())
    code, peak, seconds = measured("inspect", str(path))
    path.unlink()
    assert code in {"0", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_is_compared_within_the_limits(name, tmp_path):
    path = tmp_path / "shared.pkl"
    path.write_bytes(SHARED[name])
    code, peak, seconds = measured("diff", str(path), str(path))
    assert code in {"0", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS

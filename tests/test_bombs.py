"""Small files that would grow: each is over within the limits of time and memory.

Made when needed, of the same few instructions, and measured in a process of its own. The limits are
promised for 64 MB, but the worst files are smaller: just small enough to be looked at in full
instead of being refused for how much there is in them. So all are tried at 4 MB, and those that
take longest to refuse at full size.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from helpers import bombs
from helpers.output import environment

FULL = 60_000_000  # bytes
MEMORY = 2 << 20  # KiB
SECONDS = 20  # of the processor
SMALL = 4_000_000
SYSTEM, OBJECT, ORDERED = (
    b"cos\nsystem\nq\x00",
    b"ca\nB\nq\x00",
    b"ccollections\nOrderedDict\nq\x00",
)


def many(size: int, unit: bytes, head: bytes = b"](", tail: bytes = b"e") -> bytes:
    return b"\x80\x04" + head + unit * (size // len(unit)) + tail + b"."


def batches(size: int, unit: bytes) -> bytes:
    """Lists of a thousand, as picklers write them: the stack stays small."""
    batch = b"(" + unit * 1000 + b"e"
    return b"\x80\x04]" + batch * (size // len(batch)) + b"."


def clashing(size: int) -> bytes:
    """A million integers with one hash, at full size."""
    keys = (b"\x8a\x0b" + (i * ((1 << 61) - 1)).to_bytes(11, "little") for i in range(size // 60))
    return b"\x80\x04}(" + b"".join(key + b"N" for key in keys) + b"u."


def named(size: int) -> bytes:
    """Six million classes."""
    return b"\x80\x04(" + b"".join(b"ca\n%x\n" % i for i in range(size // 10)) + b"l."


def memorized(size: int) -> bytes:
    """Twelve million memo entries, in no order, up to the highest index."""
    puts = (b"r" + struct.pack("<I", i * 2654435761 & 0xFFFFFFFF) for i in range(size // 5))
    return b"\x80\x04N" + b"".join(puts) + b"."


def header(text: bytes) -> bytes:
    """A safetensors file without values."""
    return struct.pack("<Q", len(text)) + text


BOMBS = {
    "dicts on the stack": lambda n: many(n, b"}", b"", b""),
    "marks": lambda n: many(n, b"(", b"", b""),
    "copies of the top": lambda n: many(n, b"2", b"]", b""),
    "push and pop": lambda n: many(n, b"N0", b"", b"N"),
    "a list of lists": lambda n: batches(n, b"]"),
    "a list of sets": lambda n: batches(n, b"\x8f"),
    "a list of bytes": lambda n: batches(n, b"C\x01a"),
    "a list of texts": lambda n: batches(n, b"\x8c\x03abc"),
    "a list of integers": lambda n: batches(n, b"M\xff\xff"),
    "a list of nothing": lambda n: batches(n, b"N"),
    "a list of one text": lambda n: b"\x80\x04" + b"X\xa0\x86\x01\0" + b"a" * 100_000 + b"q\x000"
    + batches(n, b"h\x00")[2:],
    "a list of tuples": lambda n: batches(n, b"N\x85"),
    "calls": lambda n: many(n, b"h\x00)R", SYSTEM + b"]("),
    "calls thrown away": lambda n: many(n, b"h\x00)R0", SYSTEM, b""),
    "objects": lambda n: many(n, b"h\x00)\x81", OBJECT + b"]("),
    "ordered dicts": lambda n: many(n, b"h\x00)R", ORDERED + b"]("),
    "nested lists": lambda n: b"\x80\x04" + b"]" * (n // 2) + b"a" * (n // 2 - 1) + b".",
    "nested tuples": lambda n: many(n, b"\x85", b"N", b""),
    "a long integer": lambda n: b"\x80\x04\x8b" + struct.pack("<i", n) + b"\x7f" * n + b".",
    "clashing keys": clashing,
    "classes": named,
    "memo": memorized,
    "a header of empty lists": lambda n: header(b'{"a":[' + b"[]," * (n // 3) + b"1]}"),
    "a header of text": lambda n: header(
        b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(n // 11)) + b"}}"
    ),
}  # fmt: skip


# JSON that a directory, an index and an agent hold: what takes three bytes of text and 64 of
# memory, and the most that is read.
DOCUMENTS = {
    "empty objects": b"{},",
    "objects": b'{"a":"bcd","e":0.5,"f":"ghi"},',
    "texts": b'"ab",',
}


def index(path: Path, document: bytes) -> Path:
    (path / "model.safetensors.index.json").write_bytes(b'{"weight_map":{},"a":' + document + b"}")
    return path / "model.safetensors.index.json"


def trainer(path: Path, document: bytes) -> Path:
    torch.save({"w": torch.ones(2)}, path / "pytorch_model.bin")
    (path / "trainer_state.json").write_bytes(b'{"log_history":' + document + b"}")
    return path


def agent(path: Path, document: bytes) -> Path:
    torch.save({"w": torch.ones(2)}, path / "policy.pth")
    with zipfile.ZipFile(path / "agent.zip", "w") as archive:
        archive.write(path / "policy.pth", "policy.pth")
        archive.writestr("data", b'{"a":' + document + b"}")
    return path / "agent.zip"


def tensors(path: Path, document: bytes) -> Path:
    (path / "model.safetensors").write_bytes(header(b'{"a":' + document + b"}"))
    return path / "model.safetensors"


# The most memory, the most time, and the most of a thing that takes the most time to refuse.
HARDEST = ("a header of empty lists", "ordered dicts", "calls thrown away")

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


def weights(count: int, value: float = 0.0) -> dict[str, torch.Tensor]:
    return dict.fromkeys((f"layers.{i}.weight" for i in range(count)), torch.full((2, 3), value))


def under_keys(key: str, count: int, node: object) -> dict[str, object]:
    return {key.format(i): node for i in range(count)}


def circle(count: int) -> dict[str, object]:
    """Each holds two others: a place of one has many ways to it."""
    nodes: list[dict[str, object]] = [dict(weights(2)) for _ in range(count)]
    for i, node in enumerate(nodes):
        node |= {"ema": nodes[(i + 1) % count], "model": nodes[i * 7 % count]}
    return nodes[0]


# Small files with more places that could hold averages than can be compared with each other.
CROWDS = {
    "averages": lambda: {
        "model": weights(4), **{f"ema_{i}": weights(4, i + 1.0) for i in range(2000)},
    },
    "prefixes": lambda: {
        "state_dict": {f"ema_{i}.{name}": t for i in range(2000) for name, t in weights(4).items()},
    },
    "one average under many keys": lambda: {
        "model": weights(1000), **under_keys("ema_{}", 4000, weights(1000, 1.0)),
    },
    "callbacks": lambda: {
        "state_dict": weights(4),
        "callbacks": {f"EMA{i}": {"ema_state_dict": weights(4, i + 1.0)} for i in range(2000)},
    },
    "optimizers": lambda: {
        f"optimizer_{i}": {"state": {0: {"step": 3}}, "param_groups": [{"params": [0]}]}
        for i in range(8000)
    },
    "lists": lambda: {
        "model": weights(4),
        "ema": [{"shadow": [torch.full((2, 3), i + 1.0)] * 4} for i in range(2000)],
    },
    "a circle": lambda: circle(80),
    "states": lambda: under_keys("rng_{}", 4000, weights(1000)),
}  # fmt: skip


# A child's peak begins with that of the process it was forked from, so a small one stands between.
# What else runs on the machine slows a core down, to less than half where two share one. So the
# same work is done before and after, and seconds are counted in its time on an ordinary machine.
DRIVER = """
import resource, subprocess, sys, time
def work():
    begun = time.process_time()
    for _ in range(4):
        held = [{i: [i]} for i in range(100_000)]
    return time.process_time() - begun
before = work()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
slower = max(1, before / ORDINARY, work() / ORDINARY)
print(done.returncode, used.ru_maxrss, (used.ru_utime + used.ru_stime) / slower)
"""
ORDINARY = 0.35  # seconds that the work takes on an idle core of an ordinary server


def measured(*args: str) -> list[str]:
    """(exit code, KiB, seconds of an ordinary processor) of a command."""
    driver = DRIVER.replace("ORDINARY", str(ORDINARY))
    done = subprocess.run(
        [sys.executable, "-c", driver, sys.executable, "-m", "ckptool", *args],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [(name, SMALL) for name in BOMBS] + [(name, FULL) for name in HARDEST]
)
def test_a_bomb_is_over_within_the_limits(name, size, tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[name](size))
    code, peak, seconds = measured("inspect", str(path))
    path.unlink()
    assert code in {"0", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("place", [index, trainer, agent, tensors])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_read_within_the_limits(name, place, tmp_path):
    unit = DOCUMENTS[name]
    path = place(tmp_path, b"[" + unit * (FULL // len(unit)) + b"0]")
    code, peak, seconds = measured("inspect", str(path))
    assert code in {"0", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS


@pytest.mark.slow
def test_a_crowd_of_archives_is_over_within_the_limits(tmp_path):
    path, inner = tmp_path / "many.zip", tmp_path / "one.pt"
    torch.save({}, inner)
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(FULL // inner.stat().st_size):
            archive.writestr(f"{n}.pth", inner.read_bytes())
    code, peak, seconds = measured("verify", str(path))
    assert code in {"1", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("name", CROWDS)
def test_a_crowd_of_places_is_searched_within_the_limits(name, command, tmp_path):
    path = tmp_path / "crowd.pt"
    torch.save(CROWDS[name](), path)
    code, peak, seconds = measured(command, str(path))
    assert code in {"0", "1", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS


@pytest.mark.slow
def test_a_diff_takes_twice_the_time_and_no_more_memory(tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS["a list of bytes"](SMALL))
    code, peak, seconds = measured("diff", str(path), str(path))
    assert code == "2"
    assert int(peak) < MEMORY
    assert float(seconds) < 2 * SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_is_compared_within_the_limits(name, tmp_path):
    path = tmp_path / "shared.pkl"
    path.write_bytes(SHARED[name])
    code, peak, seconds = measured("diff", str(path), str(path))
    assert code in {"0", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", {**bombs.KEYS, **bombs.VALUES, **bombs.CONTAINERS})
def test_a_program_of_no_pickler_is_over_within_the_limits(name, tmp_path):
    path = tmp_path / "bomb.pt"
    path.write_bytes(bombs.ALL[name](1_000_000))
    code, peak, seconds = measured("inspect", str(path))
    assert code in {"0", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS


# What reads, compares or spells out more than inspect does.
OTHERS = (
    ("verify", "{}"),
    ("diff", "{}", "{}"),
    ("inspect", "--stats", "{}"),
    ("inspect", "--digests", "{}"),
    ("verify", "--against", "{}", "{}"),
    ("verify", "--like", "{}", "{}"),
    ("convert", "{}", "--safe", "-o", "{}.safe.pt"),
    ("convert", "{}", "--whole", "-o", "{}.whole.pt"),
    ("convert", "--explain", "{}", "{}"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "name"), [*enumerate(bombs.ALL)])
def test_other_commands_are_over_within_the_limits_too(at, name, tmp_path):
    """Each bomb is given to one of them; ``diff`` reads two files."""
    path = tmp_path / "bomb.pt"
    path.write_bytes(bombs.ALL[name](1_000_000))
    command = OTHERS[at % len(OTHERS)]
    code, peak, seconds = measured(*(word.format(path) for word in command))
    assert code in {"0", "1", "2"}
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS * command.count("{}")


def alternating(path: Path, mebibytes: int) -> None:
    """Eighty tensors that lie in turn in two storages, compressed to next to nothing."""
    one, other = (torch.zeros(mebibytes << 18) for _ in range(2))
    plain = path.with_name("plain.pt")
    views = ((f"{i:02}", (one, other)[i % 2][i * 100 : i * 100 + 100]) for i in range(80))
    torch.save(dict(views), plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            with old.open(name) as source, new.open(name, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    plain.unlink()


PACKED = {
    "inspect": ("inspect", "--stats"),
    "verify": ("verify", "--values", "--bytes"),
    "diff": ("diff",),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", PACKED)
@pytest.mark.parametrize(("mebibytes", "codes"), [(250, {"0"}), (600, {"2"})])
def test_compressed_records_are_unpacked_within_the_limits(command, mebibytes, codes, tmp_path):
    """Just small enough to be read, and too large."""
    path = tmp_path / "packed.pt"
    alternating(path, mebibytes)
    files = [str(path)] * (2 if command == "diff" else 1)
    code, peak, seconds = measured(*PACKED[command], *files)
    assert code in codes
    assert int(peak) < MEMORY
    assert float(seconds) < SECONDS

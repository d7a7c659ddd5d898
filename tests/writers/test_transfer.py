"""Values on their way: the bytes in their places, and what was seen of them."""

from __future__ import annotations

import threading
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from ckptool.dtypes import BY_NAME
from ckptool.formats import open_checkpoint
from ckptool.process.progress import no_progress
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tensors import casting
from ckptool.tensors.blocks import BLOCK, value_bytes
from ckptool.tensors.casting import Casting
from ckptool.writers.files.whole_file import whole_file
from ckptool.writers.transfer import Move, Transfer, passed, to_read_back, transfer
from ckptool.writers.values import Account
from helpers.judge import tensor_bytes

GENERATOR = torch.Generator().manual_seed(3)
SIZE = BLOCK // 4 * 3 + 5  # of a float32 tensor that is read in several parts


@pytest.fixture
def tensors():
    large = torch.randn(SIZE, generator=GENERATOR)
    return {
        "large": large,
        "nothing": torch.zeros(0, 3),
        "transposed": torch.randn(70, 90, generator=GENERATOR).T,
        "counts": torch.arange(99),
        "half": torch.randn(33, generator=GENERATOR).half(),
        "with infinity": torch.tensor([1.0, float("inf")]),
    }


@pytest.fixture
def checkpoint(tensors, tmp_path):
    torch.save(tensors, tmp_path / "in.pt")
    with open_checkpoint(tmp_path / "in.pt") as opened:
        yield opened


def moves_of(checkpoint, policy, gap=0):
    """Each tensor behind the one before."""
    moves, at = [], 64
    for name, ref in checkpoint.tree.items():
        moves.append(Move(name, ref, at))
        at += policy.nbytes_of(ref) + gap
    return moves, at


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float8_e5m2", "float64"])
def test_everything_comes_to_its_place(dtype, checkpoint, tensors, tmp_path):
    policy, account = Casting(BY_NAME[dtype] if dtype else None), Account()
    moves, end = moves_of(checkpoint, policy, gap=7)
    with whole_file(tmp_path / "out", force=False) as file:
        file.skip(end)
        moved = transfer(moves, Transfer(checkpoint.reader, policy, account), file)
    written = (tmp_path / "out").read_bytes()
    for move, (run, is_made) in zip(moves, moved, strict=True):
        tensor = tensors[move.name]
        is_cast = dtype is not None and tensor.is_floating_point()
        wanted = tensor_bytes(tensor.to(getattr(torch, dtype)) if is_cast else tensor)
        found = written[move.offset : move.offset + len(wanted)]
        assert found == wanted, move.name
        assert run == (move.offset, len(wanted), zlib.crc32(wanted))
        changes = is_cast and dtype != str(tensor.dtype).removeprefix("torch.")
        assert is_made == (changes or move.name == "transposed"), move.name
    assert to_read_back(moved) == tuple(run for run, is_made in moved if is_made)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_what_passes_is_seen(dtype, checkpoint, tensors):
    account = Account()
    moves, _ = moves_of(checkpoint, Casting())
    policy = Casting(BY_NAME[dtype] if dtype else None)
    transfer(moves, Transfer(checkpoint.reader, policy, account))
    assert passed(move.ref for move in moves) == set(account.seen)
    for move in moves:
        seen = account.seen.get(move.ref.chunks[0].span)
        assert (seen is None) == (move.name in {"nothing", "transposed"})
        if seen:
            data = tensor_bytes(tensors[move.name])
            assert (seen.nbytes, seen.crc) == (len(data), zlib.crc32(data))
            assert not seen.is_finite or move.name in {"large", "half"}
            assert seen.is_finite or move.name in {"with infinity", "counts"}


class Slow:
    """An output that notes who writes, and may fail at once."""

    def __init__(self, error=None):
        self.lock, self.calls, self.error = threading.Lock(), 0, error

    def reserve_meanwhile(self, start, end):
        pass

    def make_way(self, offset, end):
        pass

    def patch(self, data, offset):
        with self.lock:
            self.calls += 1
            error, self.error = self.error, None
        if error:
            raise error
        time.sleep(0.01)


def interrupted(_nbytes):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("output", "progress", "raised"),
    [
        (Slow(OSError(28, "No space left on device")), no_progress, OSError),
        (Slow(), interrupted, KeyboardInterrupt),
    ],
    ids=["error", "interrupt"],
)
def test_when_it_has_failed_no_thread_writes_any_more(
    output, progress, raised, checkpoint, monkeypatch
):
    """The file is closed then, and its number may be another's."""
    monkeypatch.setattr(casting, "BATCH", 1 << 16)
    moves, _ = moves_of(checkpoint, Casting())
    with pytest.raises(raised) as caught:
        transfer(moves * 3, Transfer(checkpoint.reader, progress=progress), output)
    calls = output.calls
    time.sleep(0.1)
    assert output.calls == calls
    assert caught  # holds the frames, so that nothing was closed by being forgotten


def test_big_endian_values_with_a_flag(tmp_path):
    """Arithmetic has put them in the order of the machine."""
    torch.save({"t": torch.arange(1.0, 9.0)}, tmp_path / "in.pt")
    with open_checkpoint(tmp_path / "in.pt") as opened:
        (chunk,) = opened.tree["t"].chunks
        raw = opened.reader.read(chunk.span)
        big = Memory(np.frombuffer(raw, "<f4").astype(">f4").tobytes())
        chunk = chunk._replace(span=ByteSpan(big, 0, len(raw)))
        ref = replace(opened.tree["t"], chunks=(chunk,), byteorder="big", lazy=frozenset({"neg"}))
        wanted = (-np.arange(1, 9, dtype="<f4")).tobytes()
        assert b"".join(value_bytes(opened.reader, ref)) == wanted
        with whole_file(tmp_path / "out", force=False) as file:
            transfer([Move("t", ref, 0)], Transfer(opened.reader), file)
    assert (tmp_path / "out").read_bytes() == wanted

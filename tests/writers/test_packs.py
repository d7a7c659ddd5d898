"""Many small tensors are read and written together: the same bytes, and the same is seen."""

from __future__ import annotations

import zlib
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from ckptool.dtypes import BY_NAME
from ckptool.formats import open_checkpoint
from ckptool.process.progress import no_progress
from ckptool.tensors.casting import Casting
from ckptool.tensors.mean import Mean, Weighted
from ckptool.tensors.windows import GAP, SMALL
from ckptool.writers import packs
from ckptool.writers.files.whole_file import whole_file
from ckptool.writers.transfer import Move, Transfer, transfer
from ckptool.writers.values import Account

COUNT = 300


@pytest.fixture
def tensors():
    made = {f"w{i}": torch.full((i % 7 + 1, 3), float(i)) for i in range(COUNT)}
    made["w41"] = torch.tensor([1.0, float("nan")])
    made |= {f"n{i}": torch.arange(i % 5 + 1) for i in range(20)}
    made["empty"] = torch.zeros(0, 3)
    made["transposed"] = torch.arange(12.0).reshape(3, 4).T
    made["large"] = torch.ones(SMALL)
    return made


@pytest.mark.parametrize("many", [1, 7, packs.MANY])
@pytest.mark.parametrize("gap", [0, 5, GAP, GAP + 1])
@pytest.mark.parametrize("backwards", [False, True])
def test_each_comes_to_its_place(many, gap, backwards, tensors, tmp_path, monkeypatch):
    """Whatever is between them in the output stays, and the order of the source is another."""
    monkeypatch.setattr(packs, "MANY", many)
    torch.save(tensors, tmp_path / "in.pt")
    account = Account()
    with open_checkpoint(tmp_path / "in.pt") as opened:
        names = sorted(opened.tree, reverse=backwards)
        moves, end = [], 0
        for name in names:
            moves.append(Move(name, opened.tree[name], end))
            end += opened.tree[name].nbytes + gap
        with whole_file(tmp_path / "out", force=False) as file:
            file.write(b"-" * end)
            how = Transfer(opened.reader, Casting(), account, no_progress)
            moved = transfer(moves, how, file)
    wanted = bytearray(b"-" * end)
    for move, (run, is_made) in zip(moves, moved, strict=True):
        data = np.ascontiguousarray(tensors[move.name].numpy()).tobytes()
        wanted[move.offset : move.offset + len(data)] = data
        assert run == (move.offset, len(data), zlib.crc32(data))
        assert is_made == (move.name == "transposed"), move.name
        seen = account.seen.get(move.ref.chunks[0].span)
        assert (seen is None) == (move.name in {"transposed", "empty"})
        if seen:
            is_floating = tensors[move.name].is_floating_point()
            assert seen.is_finite == (is_floating and move.name != "w41")
    assert (tmp_path / "out").read_bytes() == bytes(wanted)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("shares", [(1, 1, 1), (0.25, 0.5, 0.25)])
def test_means_that_are_made_together_are_those_made_alone(dtype, shares, tmp_path, monkeypatch):
    """To the last bit, and with the same checksums of what is read."""
    kind = getattr(torch, dtype)
    for nth in range(3):
        made = {f"w{i}": torch.randn(i % 7 + 1, 3).to(kind) for i in range(COUNT)}
        made |= {"w5": torch.tensor([nth, float("inf")]).to(kind), "t": torch.randn(4, 3).T}
        torch.save(made, tmp_path / f"{nth}.pt")
    outputs, accounts = [], []
    for small in (0, SMALL):
        monkeypatch.setattr(packs, "SMALL", small)
        with ExitStack() as stack:
            opened = [
                stack.enter_context(open_checkpoint(tmp_path / f"{nth}.pt")) for nth in range(3)
            ]
            moves, end = [], 0
            for name, ref in sorted(opened[0].tree.items()):
                series = [
                    Weighted(each.reader, each.tree[name], share)
                    for each, share in zip(opened, shares, strict=True)
                ]
                mean = Mean(name, series, sum(shares), BY_NAME[ref.dtype.name])
                moves.append(Move(name, mean.as_tensor(ref.shape), end))
                end += mean.size
            account = Account()
            with whole_file(tmp_path / f"out{small}", force=False) as file:
                moved = transfer(moves, Transfer(opened[0].reader, Casting(), account), file)
            accounts.append(
                (
                    [run for run, _ in moved],
                    sorted((s[1:], seen) for s, seen in account.seen.items()),
                )
            )
        outputs.append((tmp_path / f"out{small}").read_bytes())
    assert outputs[0] == outputs[1]
    assert accounts[0] == accounts[1]

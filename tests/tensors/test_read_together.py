"""Small spans come from few reads, and of each is seen what it alone would show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.commands.verify import Request, chosen_rules, verify_file
from ckptool.dtypes import BY_NAME
from ckptool.formats import open_checkpoint
from ckptool.process.progress import no_progress
from ckptool.reports.rules import BYTES, VALUES
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tensors import windows as module
from ckptool.tensors.blocks import BLOCK
from ckptool.tensors.finite import finite_test
from ckptool.tensors.scan import scan
from ckptool.tensors.statistics import stats_of_each, tensor_stats
from ckptool.tensors.windows import GAP, SMALL, windows
from ckptool.tree.walking import tensors
from helpers.doubles import Double
from helpers.strategies import tensor_pools
from helpers.thinned import examples

TESTED = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")
ODD = (0.0, -0.0, 1.0, -1.0, 65504.0, -65504.0, 1e15, -1e15, float("nan"), float("inf"))
PLACES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=12)
FULL = frozenset({BYTES, VALUES})


@examples(300)
@given(st.sampled_from(TESTED), st.sampled_from(["little", "big"]), PLACES, st.data())
def test_many_places_are_tested_as_each_alone(name, order, places, data):
    values = data.draw(st.lists(st.sampled_from(ODD), min_size=40, max_size=40))
    stored = torch.tensor(values, dtype=getattr(torch, name)).view(torch.uint8)
    memory = memoryview(stored.numpy().tobytes())
    cut = [(min(at, len(memory)), min(at + size, len(memory))) for at, size in places]
    test = finite_test(BY_NAME[name], order)
    found = test.of_each(memory, cut)
    assert [each.is_finite for each in found] == [test(memory[a:b]) for a, b in cut]
    for (start, stop), each in zip(cut, found, strict=True):
        width = BY_NAME[name].itemsize
        elements = {bytes(memory[at : at + width]) for at in range(start, stop - width + 1, width)}
        assert not each.is_varied or len(elements) > 1 or not each.is_finite  # NaN equals none


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@examples(200)
@given(pool=tensor_pools(), is_zip=st.booleans())
def test_a_scan_of_windows_is_one_of_single_tensors(pool, is_zip, tmp_path_factory):
    path = tmp_path_factory.mktemp("pools") / "a.pt"
    torch.save(
        {f"w{i}": tensor for i, tensor in enumerate(pool)}, path,
        _use_new_zipfile_serialization=is_zip,
    )  # fmt: skip

    def scanned():
        with open_checkpoint(path) as checkpoint:
            refs = dict(tensors(checkpoint.tree))
            found = scan(checkpoint.reader, refs, FULL, no_progress)
            return found.records, found.broken, [address for address, _ in found.suspects]

    together = scanned()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", -1)
        assert scanned() == together


def test_windows_hold_what_lies_near_in_order():
    source = Memory(bytes(3 * BLOCK))

    def cut(*runs: tuple[int, int]) -> list[tuple[int, int]]:
        found = [*windows(ByteSpan(source, *run) for run in runs)]
        places = [(w.offset + a, b - a) for w in found for a, b in w.places]
        assert places == [*runs]
        assert all(w.nbytes == max(b for _, b in w.places) for w in found)
        return [(w.offset, w.nbytes) for w in found]

    assert cut() == []
    assert cut((0, 4), (4, 4), (8 + GAP, 4)) == [(0, 12 + GAP)]
    assert cut((0, 4), (5 + GAP, 4)) == [(0, 4), (5 + GAP, 4)]
    assert cut((8, 4), (0, 4)) == [(8, 4), (0, 4)]
    assert cut((0, 40), (8, 4), (8, 0), (41, 1)) == [(0, 42)]
    assert cut((0, 4), (4, SMALL + 1)) == [(0, 4), (4, SMALL + 1)]
    assert cut((0, 2 * BLOCK), (8, 4)) == [(0, 2 * BLOCK), (8, 4)]
    assert cut((0, 2 * BLOCK), (2 * BLOCK, 4)) == [(0, 2 * BLOCK), (2 * BLOCK, 4)]
    assert len(cut(*((at, SMALL) for at in range(0, 2 * BLOCK, SMALL)))) == 2


def test_spans_behind_a_url_are_read_one_by_one():
    class Far(Double):
        is_near = False

    far = Far(bytes(100))
    assert [w.places for w in windows(ByteSpan(far, at, 4) for at in (0, 4))] == [[(0, 4)]] * 2


def test_thousands_of_small_tensors_take_few_reads(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "ckptool.sources.local.LocalFile.fetch_into",
        lambda self, buffer, at, old=module.Source.fetch_into: (
            reads.append(at) or old(self, buffer, at)
        ),
    )
    path = tmp_path / "m.pt"
    torch.save({f"w{i}.weight": torch.rand(4, 4) for i in range(3000)}, path)
    report = verify_file(path, Request(chosen_rules({"bytes": True, "values": True})))
    assert report.ok
    assert len(reads) < 30


def bits(stats):
    """Statistics as they compare to the last bit, NaN or not."""
    return stats and [each.hex() if isinstance(each, float) else each for each in vars_of(stats)]


def vars_of(stats):
    return (stats.min, stats.max, stats.mean, stats.std, stats.norm, stats.nonfinite)


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples(200)
@given(pool=tensor_pools(), odd=st.lists(st.sampled_from(ODD), min_size=4, max_size=4))
def test_statistics_of_many_are_those_of_each(pool, odd, tmp_path_factory):
    path = tmp_path_factory.mktemp("pools") / "a.pt"
    rows = [torch.tensor(odd), torch.rand(300), torch.tensor(odd, dtype=torch.float64)]
    torch.save(dict(enumerate([*pool, *rows, *(torch.randn(37) * 1e200 for _ in range(3))])), path)
    with open_checkpoint(path) as checkpoint:
        refs = [ref for _, ref in tensors(checkpoint.tree)]
        alone = [tensor_stats(checkpoint.reader, ref) for ref in refs]
        together = [*stats_of_each(checkpoint.reader, [*refs, None])]
    assert [*map(bits, together)] == [*map(bits, alone), None]

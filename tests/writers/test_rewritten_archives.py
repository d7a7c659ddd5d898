"""The record of provenance in archives that other programs rewrote."""

from __future__ import annotations

import zipfile

import pytest
import torch

from helpers.likeness import assert_same_objects
from helpers.making import average_of, resumable, weights
from helpers.tensors import load

ORDERS = {
    "last": lambda records, note: [*records, note],
    "in the middle": lambda records, note: [*records[:-4], note, *records[-4:]],
    "second": lambda records, note: [records[0], note, *records[1:]],
}


@pytest.fixture
def tracks(tmp_path):
    """A checkpoint with two averages, and something at its end."""
    model = weights()
    ema = {"fast": average_of(model), "slow": average_of(average_of(model))}
    path = tmp_path / "tracks.pt"
    torch.save({"model": model, "ema": ema, **resumable(model)}, path)
    return path


def rewritten(path, order):
    """The archive as another zip program writes it, its records in another order."""
    output = path.with_stem("rewritten")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(output, "w") as target:
        *records, note = source.infolist()
        assert note.filename.endswith("ckptool.json")
        for record in ORDERS[order](records, note):
            target.writestr(record.filename, source.read(record))
    return output


@pytest.mark.parametrize("order", ORDERS)
def test_an_earlier_note_is_replaced_wherever_it_stands(order, tracks, ckptool, tmp_path):
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    assert ckptool("promote-ema", tracks, "-o", first, "--ema", "ema/fast").exit_code == 0
    moved = rewritten(first, order)
    done = ckptool("promote-ema", moved, "-o", second, "--ema", "ema/slow")
    assert done.exit_code == 0, done
    with zipfile.ZipFile(second) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert sum(name.endswith("ckptool.json") for name in names) == 1
    notes = second.read_bytes().count(b'"command": "promote-ema"')
    assert notes == (1 if order == "last" else 2)  # what others stand behind is left as it is
    report = ckptool("inspect", second, "--json").json
    assert report["provenance"]["ema"] == "ema/slow"
    after, before = load(second), load(tracks)
    assert_same_objects(after.pop("model"), before.pop("ema")["slow"])
    del after["ema"], before["model"]
    assert_same_objects(after, before)

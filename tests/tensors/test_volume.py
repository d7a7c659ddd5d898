"""Tensors that view the same bytes again and again are refused before they are read."""

from __future__ import annotations

import pytest
import torch

from ckptool.errors import RepetitionError
from ckptool.formats import base, open_checkpoint
from ckptool.tensors.volume import MAX_VOLUME, REPEATS, refuse_repetition, volume
from ckptool.tree.walking import leaves
from helpers import bombs

MANY = MAX_VOLUME // 900_000  # views of a megabyte
VIEWS = {
    "the same": lambda i: (0, (250_000,), (1,)),
    "each a little on": lambda i: (i, (249_000,), (1,)),
    "with gaps": lambda i: (i, (2, 2), (1, 249_000)),
    "of one value": lambda i: (0, (500, 500), (0, 0)),
}
ALL_VALUES = {
    "inspect --stats": ("inspect", "--stats", "{}"),
    "inspect --digests": ("inspect", "--digests", "{}"),
    "diff": ("diff", "{}", "{}"),
    "textconv": ("textconv", "{}"),
    "extract-ema": ("extract-ema", "{}#state_dict", "-o", "out.pt"),
    "promote-ema": ("promote-ema", "{}", "-o", "out.pt"),
}


@pytest.mark.parametrize("command", ALL_VALUES)
@pytest.mark.parametrize("kind", VIEWS)
def test_views_that_come_to_far_more_than_the_file_are_refused(
    command, kind, ckptool, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "views.pt"
    path.write_bytes(bombs.views(MANY, 1_004_000, VIEWS[kind], ema=True))
    done = ckptool(*(part.format(path) for part in ALL_VALUES[command]))
    assert done.exit_code == 2
    assert "again and again" in done.stderr
    assert str(path) in done.stderr
    assert not (tmp_path / "out.pt").exists()


def test_a_verdict_on_all_values_fails_where_one_of_them_is_suspect(ckptool, tmp_path):
    """Each record is read once, whoever views it; only suspects are counted one by one."""
    path = tmp_path / "views.pt"
    data = bombs.views(MANY, 1_004_000, lambda _: (0, (500, 500), (500, 1)))
    path.write_bytes(data)
    assert ckptool("verify", path, "--rules", "CK301").exit_code == 0
    path.write_bytes(data.replace(bytes(1_004_000), b"\xff" * 1_004_000))
    done = ckptool("verify", path, "--rules", "CK301", "--json")
    assert done.exit_code == 1
    assert "again and again" in done.json["findings"][0]["message"]


def test_what_names_share_is_read_however_large_it_is(tmp_path):
    """Eight names for all of the weights: a model, its copies and its averages."""
    weight = torch.zeros(1 << 20)
    torch.save({f"copy_{i}": {"w": weight} for i in range(REPEATS)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        refs = list(leaves(checkpoint.tree))
        assert sum(map(volume, refs)) == REPEATS * weight.nbytes
        refuse_repetition(refs * (MAX_VOLUME // weight.nbytes // REPEATS))
        with pytest.raises(RepetitionError):
            refuse_repetition(refs * (MAX_VOLUME // weight.nbytes))


def test_very_many_tensors_are_read_only_where_they_have_values(monkeypatch, tmp_path):
    """Each tensor takes time of its own, however few values it has."""
    monkeypatch.setattr(base, "MAX_TENSORS", 10)
    for numel in (1, base.A_TENSOR // 4):
        torch.save({str(i): torch.zeros(numel) for i in range(20)}, tmp_path / f"{numel}.pt")
    with open_checkpoint(tmp_path / "512.pt") as checkpoint:
        refuse_repetition(leaves(checkpoint.tree))
    with (
        open_checkpoint(tmp_path / "1.pt") as checkpoint,
        pytest.raises(RepetitionError, match="20 tensors of next to no values"),
    ):
        refuse_repetition(leaves(checkpoint.tree))

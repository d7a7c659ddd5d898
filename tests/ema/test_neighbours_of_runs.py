"""Neighbours of the checkpoints of a run: the names of a directory are looked at once for all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptool.ema import neighbours
from ckptool.ema.neighbours import averaged_neighbours, raw_neighbours

LONG_AGO = 1_000_000_000


@pytest.fixture
def run(tmp_path):
    """A run whose directory, and the one above, have not changed for a while."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    for step in range(200):
        (folder / f"model_{step}.pt").touch()
        (folder / f"ema_0.999_{step}.pt").touch()
    for each in (folder, folder.parent):
        os.utime(each, (LONG_AGO, LONG_AGO))
    return folder


def test_each_checkpoint_has_the_neighbours_of_its_step(run):
    for step in (0, 7, 199):
        raw, average = run / f"model_{step}.pt", run / f"ema_0.999_{step}.pt"
        assert [*averaged_neighbours(raw)] == [("ema", average)]
        assert [*raw_neighbours(average)] == [raw]


def test_the_work_grows_with_the_files_and_not_with_their_pairs(run, monkeypatch):
    counts = dict.fromkeys(("listed", "looked at"), 0)

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(Path, "iterdir", counted("listed", Path.iterdir))
    for name in ("marker_in", "unglued", "unmarked"):
        monkeypatch.setattr(neighbours, name, counted("looked at", getattr(neighbours, name)))
    neighbours._listed.cache_clear()
    files = sorted(run.iterdir())
    for path in files:
        assert [*averaged_neighbours(path), *raw_neighbours(path)]
    assert counts["listed"] <= 3  # here, the run, and the directory above
    assert counts["looked at"] < 20 * len(files)


def test_a_file_that_comes_later_is_found(run):
    model, average = run / "model_5.pt", run / "model_5-ema.pt"
    assert [*averaged_neighbours(model)] == [("ema", run / "ema_0.999_5.pt")]
    average.touch()
    assert [*averaged_neighbours(model)] == [("ema", run / "ema_0.999_5.pt"), ("ema", average)]

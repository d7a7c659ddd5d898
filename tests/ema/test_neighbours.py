"""Which files beside a checkpoint may hold its averages, or its raw weights: by names alone."""

from __future__ import annotations

import pytest

from ckptool.ema.candidates import POSTHOC
from ckptool.ema.metadata import config_beside
from ckptool.ema.neighbours import averaged_neighbours, raw_neighbours


@pytest.fixture
def found(tmp_path):
    """The neighbours of the first file among empty files."""

    def look(ours, *others):
        for name in (ours, *others):
            path = tmp_path / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        there = [*averaged_neighbours(tmp_path / "run" / ours)]
        return [(kind, str(path.relative_to(tmp_path / "run"))) for kind, path in there]

    return look


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("last.ckpt", "last-EMA.ckpt"),
        ("model000005.pt", "ema_0.9999_000005.pt"),
        ("last.pt", "ema/last.pt"),
        ("unet/model.pt", "unet_ema/model.pt"),
        ("model/a.pt", "ema/a.pt"),
        ("last.pt", "ema/weights.pt"),
    ],
)
def test_a_marked_neighbour_is_found(ours, theirs, found):
    assert found(ours, theirs) == [("ema", theirs)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("last.ckpt", "last-EMA.pt"),
        ("last.ckpt", "best-EMA.ckpt"),
        ("model000005.pt", "ema_0.9999_000006.pt"),
        ("last.ckpt", "last-schema.ckpt"),
        ("last-EMA.ckpt", "last.ckpt"),
        ("unet/model.pt", "vae_ema/model.pt"),
    ],
)
def test_others_are_not(ours, theirs, found):
    assert found(ours, theirs) == []


def test_the_only_file_of_a_folder_is_the_twin_of_an_only_file(found):
    assert found("last.pt", "other.pt", "ema/weights.pt") == []


def test_tracks_of_posthoc_averages_are_told_apart(found):
    assert found("model.pt", "0.1000.pt", "1.1000.pt") == [
        (POSTHOC, "0.1000.pt"), (POSTHOC, "1.1000.pt"),
    ]  # fmt: skip


def test_the_raw_weights_are_found_from_the_averages(tmp_path):
    for name in ("last.pt", "last_ema.pt", "other.pt"):
        (tmp_path / name).touch()
    assert [*raw_neighbours(tmp_path / "last_ema.pt")] == [tmp_path / "last.pt"]
    assert [*raw_neighbours(tmp_path / "last.pt")] == []


@pytest.mark.parametrize(
    ("text", "fields"), [('{"decay": 0.9}', {"decay": 0.9}), ("[1]", {}), ("{", {}), (None, {})]
)
def test_a_configuration_that_cannot_be_read_says_nothing(text, fields, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert config_beside(tmp_path / "model.pt") == fields

"""Which files of a directory ckptool made of others, by their notes."""

from __future__ import annotations

from ckptool.commands.derivatives import derivatives, told

EMA = ("extract-ema", "5.ckpt")


def test_a_file_with_a_note_is_none_of_the_run():
    files = [("run/5.ckpt", None), ("run/5.ema.safetensors", EMA)]
    assert derivatives(files) == {"run/5.ema.safetensors": told(EMA)}
    assert told(EMA) == "ckptool extract-ema made it of 5.ckpt"


def test_a_checkpoint_that_was_promoted_in_place_is_one_of_the_run():
    assert derivatives([("run/4.ckpt", None), ("run/5.ckpt", ("promote-ema", "5.ckpt"))]) == {}


def test_a_file_whose_sources_are_not_there_is_one_of_the_run():
    """It was promoted in place and then renamed, or its source was deleted."""
    promoted = ("run/last.ckpt", ("promote-ema", "5.ckpt"))
    assert derivatives([("run/4.ckpt", None), promoted]) == {}
    assert [*derivatives([("run/5.ckpt", None), promoted])] == ["run/last.ckpt"]


def test_one_source_of_an_average_is_enough():
    mean = ("run/mean.pt", ("average", "a.pt, b.pt"))
    assert [*derivatives([("run/b.pt", None), mean])] == ["run/mean.pt"]
    assert [*derivatives([("run/a.pt, b.pt", None), mean])] == ["run/mean.pt"]
    assert derivatives([("run/c.pt", None), mean]) == {}


def test_nothing_is_left_out_where_nothing_would_be_left():
    assert derivatives([("run/a.pt", EMA), ("run/b.pt", EMA)]) == {}
    assert derivatives([]) == {}

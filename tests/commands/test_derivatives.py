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


def test_nothing_is_left_out_where_nothing_would_be_left():
    assert derivatives([("run/a.pt", EMA), ("run/b.pt", EMA)]) == {}
    assert derivatives([]) == {}

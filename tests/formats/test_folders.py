"""Checkpoints of several files: all of them stay open, or none."""

from __future__ import annotations

from contextlib import suppress

from ckptool.formats.folders import WEIGHTS, all_or_none


class Opened:
    closed = False

    def __enter__(self):
        return self

    def __exit__(self, *_args):
        self.closed = True


def test_what_succeeds_stays_open():
    one = Opened()
    with all_or_none() as opened:
        opened.enter_context(one)
    assert not one.closed


def test_what_fails_closes_those_before_it():
    one = Opened()
    with suppress(ValueError), all_or_none() as opened:
        opened.enter_context(one)
        raise ValueError("of the second")
    assert one.closed


def test_suffixes_of_weights_are_those_of_the_formats():
    assert {".safetensors", ".pt", ".pth", ".ckpt", ".bin"} <= WEIGHTS

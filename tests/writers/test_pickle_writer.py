"""Pickles that are written without ``pickle``, read by it."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest

from ckptool.writers.pickle_writer import PickleWriter


def read(pickled: PickleWriter) -> object:
    return pickle.loads(pickled.finish())


@pytest.mark.parametrize("number", [0, 255, 256, 2**31 - 1, 2**31, 2**63])
def test_integers_of_every_size(number):
    assert read(PickleWriter().integer(number)) == number


@pytest.mark.parametrize("text", ["", "a.weight", "ü€😀", "\ud800", "x" * 70_000])
def test_texts(text):
    assert read(PickleWriter().text(text)) == text


def test_a_tuple_of_integers():
    assert read(PickleWriter().integers((3, 0, 70_000))) == (3, 0, 70_000)


def test_a_class_is_named_once_and_then_remembered():
    out = PickleWriter().raw(b"(")
    for _ in range(2):
        out.named("collections", "OrderedDict").raw(b")R")
    pickled = out.raw(b"t").finish()
    assert pickle.loads(pickled) == (OrderedDict(), OrderedDict())
    assert pickled.count(b"OrderedDict") == 1

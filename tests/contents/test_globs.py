"""A glob that fits nothing is answered with what was probably meant."""

from __future__ import annotations

from ckptool.contents.globs import MAX_LENGTH, MAX_NEARBY, fits_one, meant, nearby, typable

NAMES = ["model/bn.weight", "model/bn.bias", "model/fc.weight"]


def test_a_glob_fits_a_whole_key_path():
    assert fits_one("model/*.bias", NAMES)
    assert not fits_one("bn", NAMES)
    assert not fits_one("MODEL/*", NAMES)


def test_a_part_of_a_key_path_is_offered_between_stars():
    assert meant("bn", NAMES) == "a glob fits whole key paths: try '*bn*'"
    assert meant("*bn", NAMES, "rules") == "a glob fits whole rules: try '*bn*'"


def test_a_misspelt_key_path_is_answered_with_those_like_it():
    assert meant("model/bm.bias", NAMES).startswith("key paths nearby: model/bn.bias")


def test_a_misspelt_word_is_answered_with_the_word():
    assert meant("wieght", NAMES) == "did you mean 'weight'?"


def test_where_nothing_is_alike_it_is_told_how_names_begin():
    assert nearby("?", ["one.a", "two/b", "one.c"], "keys") == "keys begin with one, two"
    assert meant("encoder.*", NAMES) == "key paths begin with model"
    assert nearby("?", map(str, range(9)), "keys") == "keys begin with 0, 1, 2, 3, 4, 5, …"
    assert nearby("?", [], "keys") == "keys nearby: none"


def test_long_names_and_long_lists_are_cut_off():
    assert typable(["x" * (MAX_LENGTH + 1), "short"]) == ["short"]
    assert len(typable(map(str, range(2 * MAX_NEARBY)))) == MAX_NEARBY

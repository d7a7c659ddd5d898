"""TOML is read within a limit of work."""

from __future__ import annotations

import pytest

from ckptool import toml
from ckptool.toml import load_toml


def keys(lines: int, dots: int) -> str:
    return "".join(f"k{i}{'.a' * dots} = 1\n" for i in range(lines))


def test_toml_is_values():
    assert load_toml(keys(2, 1)) == {"k0": {"a": 1}, "k1": {"a": 1}}


@pytest.mark.parametrize(("lines", "dots"), [(1, 11), (30, 3)])
def test_keys_whose_parts_take_the_parser_minutes_are_refused(lines, dots, monkeypatch):
    """Its work grows with the square of a key's parts: a line of 8 KB takes a sixth of a second."""
    monkeypatch.setattr(toml, "MAX_DOTS", 10)
    assert load_toml(keys(1, 10)) == load_toml(keys(1, 10))
    with pytest.raises(ValueError, match="more dots than keys have"):
        load_toml(keys(lines, dots))


def test_toml_that_is_nested_without_end_is_an_error():
    with pytest.raises(ValueError, match="nested without end"):
        load_toml("a = " + "[" * 100_000)

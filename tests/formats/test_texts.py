"""Text beside weights is read as values: JSON, and the flat YAML of SpeechBrain."""

from __future__ import annotations

import pytest

from ckptool.formats.texts import MAX_NESTING, from_json, from_lines


def test_json_is_values():
    assert from_json('{"step": 3, "log": [{"loss": 0.5}], "done": true, "name": "a"}') == {
        "step": 3, "log": [{"loss": 0.5}], "done": True, "name": "a",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[" * MAX_NESTING + "1" + "]" * MAX_NESTING])
def test_what_no_trainer_writes_is_an_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - of json's or of ours
        from_json(text)


def test_lines_are_values():
    text = "# made by a trainer\nepoch: 3\nlr: 1.0e-3\nbest: true\nname: 'a b'\nnone: null\n"
    assert from_lines(text) == {
        "epoch": 3, "lr": 0.001, "best": True, "name": "a b", "none": None,
    }  # fmt: skip
    assert from_lines("7\n") == 7
    assert from_lines("two\nlines of prose\n") == "two\nlines of prose\n"

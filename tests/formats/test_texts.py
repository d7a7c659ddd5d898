"""Text beside weights is read as values: JSON, and the flat YAML of SpeechBrain."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptool.formats import texts
from ckptool.formats.texts import MAX_NESTING, from_json, from_lines, load_json


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


@pytest.mark.parametrize(
    "text", ["[[],[],[]]", '[{"a":0},{}]', b"[[],{},[]]", "[0,0,0,0]", b"[0,0,0,0]"]
)
def test_json_of_many_small_values_is_refused(text, monkeypatch):
    """Each of its bytes could take twenty of memory."""
    monkeypatch.setattr(texts, "MAX_CONTAINERS", 2)
    monkeypatch.setattr(texts, "MAX_VALUES", 2)
    with pytest.raises(ValueError, match="more than 2 containers or 2 values"):
        load_json(text)
    assert load_json("[1, [2]]") == [1, [2]]


def test_all_json_of_files_is_read_within_the_limits():
    """What a process of ckptool's own writes is not a file's."""
    package = Path(texts.__file__).parents[1]
    readers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "json.load" in path.read_text().replace("``json.loads``", "")
    }
    # The hub's answers are bounded by their bytes.
    assert readers == {"formats/texts.py", "process/ranks.py", "sources/remote/hub.py"}

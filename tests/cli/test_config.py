"""``ckptool.toml`` and ``[tool.ckptool]``: rows for a house style, read strictly."""

from __future__ import annotations

import pytest

from ckptool.cli.config import ConfigError, read_layouts
from helpers.twins import drawn, near, save

ROW = """
[[{at}layouts]]
name = "ours"
library = "our trainer"
ema_at = "trainer/ema_weights"
model_at = "trainer/weights"
"""
PLAIN = ROW.format(at="")
INSIDE = ROW.format(at="tool.ckptool.")


def names(folder) -> list[str]:
    return [row.name for row in read_layouts(folder)]


def test_nothing_configured(tmp_path):
    assert read_layouts(tmp_path) == ()


@pytest.mark.parametrize(("file", "text"), [("ckptool.toml", PLAIN), ("pyproject.toml", INSIDE)])
def test_row(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    (row,) = read_layouts(tmp_path)
    assert (row.name, row.library) == ("ours", "our trainer")
    assert (row.ema_at, row.model_at) == ("trainer/ema_weights", "trainer/weights")
    assert (row.written_by, row.swapped, row.meta_at) == (str(tmp_path / file), False, ())


def test_all_fields(tmp_path):
    more = """
    written_by = "https://example.org"
    beside = ["trainer/version"]
    when = ["trainer/swap", true]
    naming = "wrapped"
    kind = "swa"
    swapped = true
    meta_at = ["trainer/ema_settings"]
    promoted_flag = "promoted"
    """
    (tmp_path / "ckptool.toml").write_text(PLAIN + more)
    (row,) = read_layouts(tmp_path)
    assert row.written_by == "https://example.org"
    assert (row.beside, row.when) == (("trainer/version",), ("trainer/swap", True))
    assert (row.naming, row.kind, row.swapped) == ("wrapped", "swa", True)
    assert (row.meta_at, row.promoted_flag) == (("trainer/ema_settings",), "promoted")


def test_several_rows_keep_their_order(tmp_path):
    (tmp_path / "ckptool.toml").write_text(PLAIN + PLAIN.replace("ours", "theirs"))
    assert names(tmp_path) == ["ours", "theirs"]


def test_nearest_configuration_is_read(tmp_path):
    (tmp_path / "ckptool.toml").write_text(PLAIN)
    near_by = tmp_path / "a" / "b"
    near_by.mkdir(parents=True)
    assert names(near_by) == ["ours"]
    (tmp_path / "a" / "pyproject.toml").write_text(INSIDE.replace("ours", "theirs"))
    assert names(near_by) == ["theirs"]


def test_pyproject_of_others_is_passed_over(tmp_path):
    (tmp_path / "ckptool.toml").write_text(PLAIN)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert names(inner) == ["ours"]


def test_ckptool_toml_comes_before_pyproject(tmp_path):
    (tmp_path / "ckptool.toml").write_text(PLAIN)
    (tmp_path / "pyproject.toml").write_text(INSIDE.replace("ours", "theirs"))
    assert names(tmp_path) == ["ours"]


WRONG = {
    "unknown field": (PLAIN + 'emma_at = "x"\n', "emma_at"),
    "missing field": (PLAIN.replace("ema_at", "#"), "ema_at"),
    "no toml": ("[[layouts]\n", "TOML"),
    "no utf-8": ("\udcff", "TOML"),
    "no list": ('layouts = "ours"\n', "list of tables"),
    "no table in the list": ('layouts = ["ours"]\n', "missing fields"),
    "a number for an address": (PLAIN.replace('"trainer/ema_weights"', "3"), "ema_at"),
    "a word for a list": (PLAIN + 'meta_at = "trainer"\n', "meta_at"),
    "numbers in a list": (PLAIN + "beside = [1]\n", "beside"),
    "a word for a flag": (PLAIN + 'swapped = "yes"\n', "swapped"),
    "one word for a condition": (PLAIN + 'when = ["trainer/swap"]\n', "when"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_understood_is_an_error(wrong, ckptool, tmp_path, monkeypatch):
    text, said = WRONG[wrong]
    (tmp_path / "ckptool.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=said):
        read_layouts(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "last.pt", {"model": drawn(), "ema": near(drawn())})
    for command in (("inspect", path), ("layouts",), ("extract-ema", path, "-o", "x.pt")):
        done = ckptool(*command, "--json")
        assert done.exit_code == 2
        assert done.json["error"]["code"] == "config"
        assert said in done.json["error"]["message"]
    assert not (tmp_path / "x.pt").exists()


def test_huge_file_is_an_error(tmp_path):
    (tmp_path / "ckptool.toml").write_text("#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger"):
        read_layouts(tmp_path)


def test_configuration_beside_a_checkpoint_elsewhere_is_not_read(ckptool, tmp_path, monkeypatch):
    """A file from elsewhere must not decide what is right; only where one works counts."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "ckptool.toml").write_text(
        PLAIN.replace("trainer/ema_weights", "ema").replace("trainer/weights", "model")
        + "swapped = true\n"
    )
    path = save(tmp_path / "theirs" / "last.pt", {"model": drawn(), "ema": near(drawn())})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = ckptool("inspect", path, "--json").json["ema"]
    assert (found["main_slot"], found["selected"]) == ("raw", "ema")

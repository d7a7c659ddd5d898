"""``ckptool layouts`` lists the table, and the rows of a house style before it."""

from __future__ import annotations

import pytest

from ckptool.ema.layouts import LAYOUTS, EmaLayout, main_slot_layout, match_layout
from ckptool.ema.locate import locate_ema
from ckptool.formats import open_checkpoint
from ckptool.tree.patterns import nodes_at
from helpers.paths import FIXTURES

FIELDS = list(EmaLayout._fields)


def test_text_has_a_line_for_each_row(ckptool):
    lines = ckptool("layouts").splitlines()
    assert len(lines) == len(LAYOUTS) + 1
    for row, line in zip(LAYOUTS, lines[1:], strict=True):
        assert line.startswith(row.name)
        assert row.ema_at in line
        assert row.library in line
        assert ("raw weights" in line) == row.swapped


def test_json_has_the_fields_of_each_row(ckptool):
    document = ckptool("layouts", "--json").json
    assert list(document) == ["schema", "layouts"]
    assert document["schema"] == "ckptool/layouts/1"
    assert [row["name"] for row in document["layouts"]] == [row.name for row in LAYOUTS]
    assert all(list(row) == FIELDS for row in document["layouts"])


def test_house_rows_come_first(ckptool, tmp_path, monkeypatch):
    (tmp_path / "ckptool.toml").write_text(
        '[[layouts]]\nname = "ours"\nlibrary = "us"\nema_at = "a/[b]"\nmodel_at = "c"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert ckptool("layouts", "--json").json["layouts"][0]["name"] == "ours"
    assert "a/[b]" in ckptool("layouts").splitlines()[1]


@pytest.mark.parametrize("row", LAYOUTS, ids=lambda row: f"{row.name}-{row.ema_at}")
def test_row_says_who_writes_it(row):
    assert row.written_by
    assert row.library
    assert row.ema_at


def test_every_row_is_used_by_a_fixture(zoo):
    """A row without a file that shows it is a guess."""
    seen = set()
    for root in (FIXTURES / "ema", zoo / "files"):
        for path in sorted(root.rglob("*")):
            if (
                path.suffix in {".pt", ".pth", ".ckpt", ".pkl", ".tar", ".th", ".bin"}
                or path.name == ".metadata"
            ):
                with open_checkpoint(
                    path.parent if path.name == ".metadata" else path
                ) as checkpoint:
                    location = locate_ema(checkpoint)
                seen |= {c.layout for c in location.candidates if c.layout}
    # Rows that only doubt are shown by files made in test_beliefs.py.
    assert [row.name for row in LAYOUTS if row not in seen and not row.doubt] == []


# ----------------------------------------------------------------------------------------- matching

TREE = {"trainer": {"ema": {"flag": True}, "other": {"flag": False}, "number": 1}, "top": None}


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("trainer", 1),
        ("trainer/*", 3),
        ("trainer/*/flag", 2),
        ("*", 2),
        ("top", 1),
        ("top/x", 0),
        ("trainer/em?", 1),
        ("", 0),
    ],
)
def test_patterns_of_places(pattern, count):
    assert len(nodes_at(TREE, pattern)) == count


def row(**fields) -> EmaLayout:
    return EmaLayout(
        **(
            {"name": "x", "library": "x", "ema_at": "a/*", "model_at": "m", "written_by": "x"}
            | fields
        )
    )


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, True),
        ({"ema_at": "a/b"}, True),
        ({"ema_at": "a"}, False),
        ({"ema_at": "a/*/*"}, False),
        ({"naming": "wrapped"}, True),
        ({"naming": "same"}, False),
        ({"beside": ("trainer", "top")}, True),
        ({"beside": ("trainer", "missing")}, False),
        ({"when": ("trainer/*/flag", True)}, True),
        ({"when": ("trainer/other/flag", True)}, False),
        ({"when": ("trainer/number", True)}, False),  # 1 is not True
        ({"when": ("top", None)}, True),
    ],
)
def test_row_fits_when_all_its_conditions_hold(fields, fits):
    assert (match_layout(TREE, ["a/b"], "wrapped", (row(**fields),)) is not None) == fits


def test_first_row_that_fits_counts():
    first, second = row(name="first"), row(name="second")
    assert match_layout(TREE, ["a/b"], None, (first, second)) is first


def test_rows_for_the_main_slot():
    swapped = row(ema_at="m", model_at="m", beside=("trainer",))
    assert main_slot_layout(TREE, "m", (row(), swapped)) is swapped
    assert main_slot_layout(TREE, "m", (row(),)) is None
    assert main_slot_layout(TREE, "other", (swapped,)) is None

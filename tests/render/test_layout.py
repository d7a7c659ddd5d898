"""Tables that give way as the terminal narrows: what goes first, and what stays whole."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ckptool.render import wrapping
from ckptool.render.layout import laid_out
from ckptool.render.page import Grid, line
from ckptool.render.wrapping import shortened, width_of, wrapped
from helpers.paths import FIXTURES
from helpers.terminals import on_terminal, plain
from helpers.thinned import examples

NAMES = [f"model/blocks.{i}.attn.in_proj_weight" for i in range(3)]


def table(rows, **options):
    heads = ("size", "worst at", "remark")
    grid = Grid("left", "right", "left", "text", title="Tensors", heads=heads, **options)
    for name in rows:
        remark = line("two words or more of them")
        grid.add_row(line("  ", (name, "name")), "1,234 KiB", "[1, 2, 3]", remark)
    return grid


def shown(grid, width):
    return [each.text for each in laid_out(iter([grid]), width)]


def test_a_pipe_gets_every_column_and_name_whole():
    text = "\n".join(shown(table(NAMES, drops=(2, 3), names=True), None))
    assert all(name in text for name in NAMES)
    assert text.count("two words or more of them") == text.count("[1, 2, 3]") == len(NAMES)


def test_first_a_common_beginning_is_told_once():
    rows = shown(table(NAMES, names=True), 80)
    assert rows[1:3] == ["Tensors", "  all names begin with model/blocks."]
    assert rows[4].split()[0] == "0.attn.in_proj_weight"


def test_then_columns_leave_in_their_order_and_are_named():
    head, *rows = shown(table(["a", "b"], drops=(2, 3)), 44)[1:]
    assert head.split() == ["Tensors", "size", "remark"]
    assert rows[-1] == "  not shown, for want of room: worst at"


def test_text_is_wrapped_in_its_column():
    rows = shown(table(["a" * 30]), 80)[2:]
    assert len(rows) == 2
    assert rows[1].strip() == "them"
    assert rows[1].index("them") == rows[0].index("two")


def test_then_names_lose_their_middle_at_dots():
    name = "model/" + "encoder.layers.0." * 4 + "self_attn.out_proj.weight"
    (row,) = shown(table([name], drops=(2, 3)), 70)[2:-1]
    assert re.match(r"  model\S*…\S*out_proj\.weight  ", row)


def test_at_last_rows_are_stacked():
    rows = shown(table(NAMES), 40)[1:]
    assert rows[:4] == [
        "Tensors",
        f"  {NAMES[0]}",
        "    size 1,234 KiB  worst at [1, 2, 3]",
        "    remark two words or more of them",
    ]


def test_stacked_rows_keep_the_columns_that_would_have_left():
    rows = shown(table(NAMES, drops=(2, 3)), 40)
    assert "    size 1,234 KiB  worst at [1, 2, 3]" in rows
    assert not any("not shown" in row for row in rows)


def test_cells_are_stacked_deeper_than_the_name_of_a_branch():
    grid = Grid("left", "right", "bar", heads=("", "size", "0 1 2"), title="Tensors")
    grid.add_row(line((f"      {'a' * 30}", "name")), "1,234 KiB", "█" * 9)
    assert shown(grid, 40)[2:] == [f"      {'a' * 30}", "        size 1,234 KiB"]


def test_a_stacked_cell_that_is_too_wide_is_wrapped():
    rows = shown(table(["a"]), 20)
    assert all(width_of(row) <= 20 for row in rows)
    assert "".join(rows).count("remark") == 1


NAME = st.text("ab.…/語\u0301", max_size=60)


@given(NAME, st.integers(1, 80))
@examples(200)
def test_shortened_names_fit_and_keep_their_ends(name, width):
    short = shortened(name, width)
    assert width_of(short) <= max(width, 1)
    assert short == name or "…" in short


@given(st.lists(st.text("ab c\u0301語/.", max_size=30), max_size=4), st.integers(2, 40))
@examples(200)
def test_wrapped_lines_fit_and_lose_only_blanks(texts, width):
    made = line(*[(text, str(i)) for i, text in enumerate(texts)])
    parts = list(wrapped(made, width))
    assert all(cell_len(part.text) <= width for part in parts)
    assert re.sub(" ", "", "".join(p.text for p in parts)) == made.text.replace(" ", "")


@given(st.lists(NAME, max_size=4), st.integers(20, 120), st.booleans())
@examples(100)
def test_no_line_of_a_table_is_too_wide(names, width, told):
    for row in shown(table(names, drops=(3, 2), names=told), width):
        assert width_of(row) <= width


def test_names_keep_their_indent_when_what_they_share_is_told_once():
    grid = Grid("left", "right", title="Tensors", names=True)
    for name in NAMES:
        grid.add_row(line((f"  {name}", "name")), "1,234 KiB")
    told, *rows = shown(grid, 40)[2:]
    assert told == "  all names begin with model/blocks."
    assert rows == [f"  {i}.attn.in_proj_weight  1,234 KiB" for i in range(3)]


def test_a_narrow_column_comes_back_where_a_wide_one_had_to_leave():
    grid = Grid("left", "right", "right", title="Files", heads=("lr", "loss"), drops=(1, 2))
    grid.add_row("checkpoint", "1e-3", "0.123456789")
    assert [row.split() for row in shown(grid, 25)[1:3]] == [
        ["Files", "loss"], ["checkpoint", "0.123456789"],
    ]  # fmt: skip
    assert " ".join(" ".join(shown(grid, 20)).split()) == (
        "Files lr checkpoint 1e-3 not shown, for want of room: loss"
    )


# ---------------------------------------------------------------------------- names in every output


@pytest.fixture(scope="module")
def long_names(tmp_path_factory):
    """Two checkpoints whose names are as long as those of adapters of language models are."""
    folder = tmp_path_factory.mktemp("names")
    stem = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.default.weight"
    for file in (0, 1):
        names = [stem.format(i, p, ab) for i in (3, 11) for p in "qv" for ab in "AB"]
        model = {name: torch.full((2, 2), 1.0 + file + i) for i, name in enumerate(names)}
        ema = {f"module.{name}": tensor / 2 for name, tensor in model.items()}
        states = {i: {"exp_avg": tensor * 3} for i, tensor in enumerate(model.values())}
        optimizer = {"state": states, "param_groups": [{"params": list(states)}]}
        metrics = {"validation_loss_of_held_out_data": 0.5 + file, "best_validation_loss": 0.25}
        state = {"model": model, "ema": ema, "optimizer": optimizer, "epoch": file, **metrics}
        torch.save(state, folder / f"checkpoint-of-the-epoch-{file}-with-a-long-name.pt")
    return folder


def commands(folder):
    one, other = sorted(folder.iterdir())[:2]
    yield from (("inspect", one), ("inspect", one, "--tensors"), ("inspect", one, "--histogram"))
    yield from (("inspect", folder), ("inspect", f"{one}#optimizer"), ("verify", one, "-v"))
    yield from (("verify", one, other), ("diff", one, other), ("diff", one, other, "--stat"))
    yield from (("diff", f"{one}#@model", f"{one}#@ema"), ("rule",), ("layouts",))
    yield ("extract-ema", one, "-o", folder / "out.pt", "--dry-run")
    yield ("promote-ema", one, "-o", folder / "out.pt", "--dry-run")


WORD = re.compile(r"[\w./-]*\w")


@pytest.mark.parametrize("name", ["long_names", "resume", "ema/emacallback"])
def test_no_output_at_80_columns_breaks_a_name_in_two(name, request, monkeypatch, ckptool):
    folder = request.getfixturevalue(name) if name == "long_names" else FIXTURES / name
    monkeypatch.chdir(folder.parent)  # paths of the test's folder are no names
    for args in commands(folder.relative_to(folder.parent)):
        whole = set(WORD.findall(ckptool(*args).stdout))
        rows = plain(on_terminal(*args)).splitlines()
        for before, row in pairwise(rows):
            is_copied = row.startswith(("error: ", "hint: "))  # on one line, however long
            assert is_copied or cell_len(row) <= 80, (args, row)
            left, right = before.split()[-1:], row.split()[:1]
            is_level = len(before.split()) == 1 and before.endswith("/")  # of a tree
            glued = "".join(left + right).strip("(),;:")
            is_whole = not left or not right or is_level or len(glued) <= 16 or glued not in whole
            assert is_whole, (args, before, row)


@pytest.mark.parametrize("name", ["long_names", "ema/emacallback"])
def test_every_output_fits_40_columns(name, request, monkeypatch):
    folder = request.getfixturevalue(name) if name == "long_names" else FIXTURES / name
    monkeypatch.chdir(folder.parent)
    for args in commands(folder.relative_to(folder.parent)):
        for row in plain(on_terminal(*args, width=40)).splitlines():
            assert cell_len(row) <= 40 or row.startswith(("error: ", "hint: ")), (args, row)


def test_the_count_of_non_finite_values_stays_where_bars_leave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.zeros(2)}}, "a.pt")
    torch.save({"model": {"w": torch.tensor([1.0, float("nan")])}}, "b.pt")
    for width in (40, 60, 100):
        told = " ".join(plain(on_terminal("diff", "a.pt", "b.pt", width=width)).split())
        assert "1 NOT FINITE" in told
        assert ("█" in told) is (width == 100)


@pytest.mark.parametrize(
    ("text", "most"), [("ascii words " * 10_000, 0), ("漢字 und Wörter " * 1000, 4)]
)
def test_the_letters_of_a_long_text_are_measured_a_few_times_at_most(text, most, monkeypatch):
    """Pages of a million rows: where all is ASCII, no letter is looked at by itself."""
    measured = []
    monkeypatch.setattr(wrapping, "_columns", lambda char: measured.append(char) or 1)
    assert len(list(wrapped(line(text), 40))) > 300
    assert len(measured) <= most * len(text)

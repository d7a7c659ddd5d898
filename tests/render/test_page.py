"""Pages: lines of pieces, grids of lines, and several reports one after the other."""

from __future__ import annotations

from ckptool.render.page import Grid, Line, line, one_by_one


def test_a_line_is_pieces_with_meanings():
    made = line("plain ", ("bad", "error"), wraps=False)
    assert made == Line((("plain ", ""), ("bad", "error")), wraps=False)
    assert made.text == "plain bad"


def test_rows_of_a_grid_are_filled_up():
    grid = Grid("left", "right", "left")
    grid.add_row("a", line("b"))
    assert [[cell.text for cell in row] for row in grid.rows] == [["a", "b", ""]]


def test_reports_are_parted_by_an_empty_line():
    show = one_by_one(lambda report: iter([line(report)]))
    assert [each.text for each in show(["a", "b"])] == ["a", "", "b"]
    assert list(show([])) == []

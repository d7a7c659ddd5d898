"""Colours and widths: on a terminal of 80 columns, in a pipe, and as the user wants it."""

from __future__ import annotations

import re

import pytest
import torch
from rich.cells import cell_len
from rich.style import Style

from ckptool.render.terminal import STYLES
from helpers.contrast import contrast
from helpers.making import average_of, save, weights
from helpers.paths import FIXTURES
from helpers.terminals import ESCAPES, WIDTH, on_terminal, plain, process_on_terminal

EXPORTED = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
COLOURS = re.compile(r"\x1b\[([0-9]+;)*(3[0-8]|9[0-7])(;[0-9]+)*m")
BACKGROUNDS = {
    "black": "#000000", "white": "#ffffff", "a dark editor": "#1e1e1e", "Ubuntu": "#300a24",
    "Solarized dark": "#002b36", "Solarized light": "#fdf6e3",
}  # fmt: skip


COMMANDS = [
    (80, {}, "inspect", EXPORTED, "--tensors"),
    (50, {"TERM": "xterm"}, "inspect", FIXTURES / "resume"),
    (30, {}, "inspect", "missing"),
    (120, {"NO_COLOR": "1"}, "verify", EXPORTED, "--bytes"),
    (60, {"COLORTERM": "truecolor"}, "diff", f"{EXPORTED}#@model", f"{EXPORTED}#@ema"),
    (40, {"TERM": "dumb"}, "extract-ema", EXPORTED, "-o", "out.pt", "--dry-run"),
    (100, {"COLUMNS": "70"}, "verify", "--help"),
]


@pytest.mark.parametrize(("width", "env", "args"), [(w, e, a) for w, e, *a in COMMANDS])
def test_the_program_writes_what_the_command_line_writes_here(width, env, args):
    """So that the other tests of terminals need no process of their own."""
    shown = process_on_terminal(*args, width=width, env=env)
    assert on_terminal(*args, width=width, env=env) == shown
    assert shown


# ------------------------------------------------------------------------------------------- widths


@pytest.fixture
def long_names(tmp_path):
    """A checkpoint with names, values and a path that do not fit on a line."""
    model = {f"encoder.layers.{i}.{'very_long_name_' * 4}.weight": torch.ones(2, 2) for i in (1, 3)}
    model |= {"日本語" * 24: torch.ones(1), "e\u0301" * 60: torch.ones(3)}
    folder = tmp_path / ("a_folder_with_a_long_name_" * 3)
    folder.mkdir()
    more = {"best_" + "metric" * 20: 0.123456789, "val_stats": {f"{'k' * 60}_loss": 0.5}}
    return save(folder / "checkpoint.pt", weights(**model), average_of(weights(**model)), **more)


@pytest.mark.parametrize("options", [(), ("--tensors",), ("--tensors", "--stats")], ids=str)
def test_no_line_is_wider_than_the_terminal(options, long_names):
    for path in (EXPORTED, long_names):
        for line in plain(on_terminal("inspect", path, *options)).splitlines():
            assert cell_len(line) <= WIDTH, line


def test_a_folder_fits_on_the_terminal_too(long_names):
    for folder in (long_names.parent, FIXTURES / "resume"):
        for line in plain(on_terminal("inspect", folder)).splitlines():
            assert cell_len(line) <= WIDTH, line


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_plans_fit_on_the_terminal(command, long_names):
    output = long_names.with_name("out.pt")
    shown = plain(on_terminal(command, long_names, "-o", output, "--dry-run"))
    # The path is one word: it is broken, never cut.
    assert str(output) in shown.replace("\n", "")
    assert all(cell_len(line) <= WIDTH for line in shown.splitlines())


def test_a_verdict_fits_on_the_terminal_and_wraps_in_its_column(long_names):
    for paths in ((EXPORTED,), (EXPORTED, long_names)):
        lines = plain(on_terminal("verify", *paths)).splitlines()
        assert all(cell_len(line) <= WIDTH for line in lines)
        begin = next(i for i, line in enumerate(lines) if line.startswith("  CK407"))
        assert all(line.startswith(" " * 9) for line in lines[begin + 1 : lines.index("", begin)])


def test_numbers_stay_whole_and_long_names_lose_their_middle(long_names):
    shown = plain(on_terminal("inspect", long_names, "--tensors"))
    assert "0.123457" in shown
    assert "…" in next(line for line in shown.splitlines() if "語" in line)


def test_what_is_to_be_copied_is_left_to_the_terminal(tmp_path):
    """An error and its hint are one line each, however long; a copied line has no breaks."""
    missing = tmp_path / ("x" * 100)
    error, hint = plain(on_terminal("inspect", missing)).splitlines()
    assert error.endswith(f"{missing}: no such file")
    assert hint.startswith("hint: ")


def test_a_pipe_gets_whole_lines(long_names, ckptool_process):
    shown = ckptool_process("inspect", long_names)
    assert max(map(len, shown.splitlines())) > WIDTH
    assert all(line == line.rstrip() for line in shown.splitlines())


# ------------------------------------------------------------------------------------------ colours


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("meaning", [name for name, style in STYLES.items() if "color" in style])
def test_colours_can_be_read_on_dark_and_on_light_terminals(meaning, background):
    color = Style.parse(STYLES[meaning]).color.get_truecolor().hex
    assert contrast(color, BACKGROUNDS[background]) >= 3


@pytest.mark.parametrize("meaning", STYLES)
def test_no_text_is_dim_or_in_a_colour_that_themes_set(meaning):
    """Of these nobody can know the contrast."""
    style = Style.parse(STYLES[meaning])
    assert not style.dim
    assert style.color is None or style.color.number >= 16


def test_terminals_of_16_colours_get_none_that_themes_make_unreadable():
    shown = on_terminal("verify", EXPORTED, env={"TERM": "xterm"})
    assert set(re.findall(r"\x1b\[([0-9;]+)m", shown)) == {"0", "1", "1;35"}


@pytest.mark.parametrize("term", ["", "dumb", "xterm", "xterm-256color"])
def test_colours_that_are_asked_for_do_not_depend_on_the_terminal(term, ckptool_process):
    shown = ckptool_process("inspect", EXPORTED, "--color", "always", env={"TERM": term})
    assert "\x1b[38;5;31mstate_dict" in shown


def test_a_terminal_gets_colours():
    assert COLOURS.search(on_terminal("inspect", EXPORTED))


def test_a_pipe_gets_none(ckptool_process):
    assert "\x1b" not in ckptool_process("inspect", EXPORTED)
    assert "\x1b" not in ckptool_process("inspect", "missing").stderr


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("--color", "never"), {}),
        ((), {"NO_COLOR": "1"}),
        ((), {"NO_COLOR": "1", "FORCE_COLOR": "1"}),
        (("--color=never",), {"FORCE_COLOR": "1"}),
        ((), {"TERM": "dumb"}),
    ],
)
def test_nobody_gets_colours_who_wants_none(args, env):
    assert not COLOURS.search(on_terminal("inspect", EXPORTED, *args, env=env))
    assert not COLOURS.search(on_terminal("inspect", "missing", *args, env=env))


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("--color", "always"), {}),
        (("--color=always",), {}),
        ((), {"FORCE_COLOR": "1"}),
        (("--color", "always"), {"NO_COLOR": ""}),
    ],
)
def test_a_pipe_gets_colours_when_somebody_wants_them(args, env, ckptool_process):
    assert COLOURS.search(ckptool_process("inspect", EXPORTED, *args, env=env))
    assert COLOURS.search(ckptool_process("inspect", "missing", *args, env=env).stderr)


def test_a_wrong_colour_is_a_refusal(ckptool):
    output = ckptool("inspect", EXPORTED, "--color", "sometimes")
    assert output.exit_code == 2
    assert "sometimes" in output.stderr


def test_json_has_no_colour(ckptool_process):
    output = ckptool_process("inspect", EXPORTED, "--json", "--color", "always")
    assert "\x1b" not in output
    assert output.json["format"] == "torch-zip"


@pytest.mark.parametrize("options", [(), ("--tensors",), ("--stats",)], ids=str)
def test_colours_change_no_letter_of_inspect(options, ckptool):
    for path in (EXPORTED, FIXTURES / "ema" / "mmengine" / "epoch_3.pth", FIXTURES / "resume"):
        coloured = ckptool("inspect", path, *options, "--color", "always")
        assert plain(coloured) == ckptool("inspect", path, *options)


def test_colours_change_no_letter_of_verify(ckptool):
    for paths in ((EXPORTED,), (EXPORTED, FIXTURES / "resume")):
        coloured = ckptool("verify", *paths, "--require", "resume", "--color", "always")
        assert COLOURS.search(coloured)
        assert plain(coloured) == ckptool("verify", *paths, "--require", "resume")


def test_colours_change_no_letter_of_diff(ckptool):
    tables = f"{EXPORTED}#@model", f"{EXPORTED}#@ema"
    plain = ckptool("diff", *tables).stdout
    assert ESCAPES.sub("", ckptool("diff", *tables, "--color", "always").stdout) == plain
    assert "\nSections " in plain

"""The documentation tells the truth: outputs are what commands print, tables what the code has.

After a change of output or of a table: ``python tests/test_docs.py`` writes all of it anew: the
outputs in README and ``docs/``, the generated pages and tables, the picture, and the tree of the
package in CONTRIBUTING.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import formats_table
import layouts_table
import man_page
import package_tree
import rules_page
import trainers_table
from ckptool.cli import COMMANDS
from ckptool.cli.config import read_settings
from helpers.documents import (
    BLOCK,
    DOCS,
    PROMPT,
    README,
    files_of,
    page_id,
    pages,
    reader_of,
    typed,
    with_outputs,
)
from helpers.links import broken_links
from helpers.paths import REPOSITORY
from helpers.pictures import picture, texts

PICTURE = DOCS / "images/inspect.svg"
PICTURED = "ckptool inspect last.ckpt"
WIDTH = 92  # columns of the picture
OTHERS = {"rule", "layouts", "textconv"}  # commands that other pages explain
WISH = re.compile(r"^\| (?P<wish>[^|]+) \| `(?P<line>ckptool [^`]+)` \|$", re.MULTILINE)

# Generated page -> function that returns its text from the text that it has.
GENERATED: dict[Path, Callable[[str], str]] = {
    formats_table.PAGE: formats_table.with_table,
    layouts_table.PAGE: layouts_table.with_table,
    trainers_table.PAGE: trainers_table.with_table,
    rules_page.PAGE: lambda _: rules_page.page(),
    package_tree.PAGE: package_tree.page,
    man_page.PAGE: lambda _: man_page.page(),
}


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_pages_show_what_is_printed(page):
    text = page.read_text()
    assert text == with_outputs(text), "run python tests/test_docs.py"


@pytest.mark.parametrize("page", GENERATED, ids=page_id)
def test_generated_pages_are_those_of_the_tables(page):
    text = page.read_text()
    assert text == GENERATED[page](text), "run python tests/test_docs.py"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in OTHERS])
def test_every_command_has_a_page_with_its_help(command):
    text = (DOCS / f"commands/{command}.md").read_text()
    typed_lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    assert f"{PROMPT}ckptool {command} --help" in typed_lines


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not there")
def test_the_man_page_is_one():
    """Without a warning, and with every command and option."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rLL=200n", str(man_page.PAGE)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    shown = re.sub(r"\x1b\[[\d;]*m|.\x08", "", done.stdout).replace("‐", "-").replace("−", "-")
    for command, row in COMMANDS.items():
        assert f"ckptool {command} " in shown
        assert f"Example: {row.example}" in shown
    assert {"--require NAME,...", "--max-shard-size SIZE"} <= {
        line.strip() for line in shown.splitlines()
    }


# ------------------------------------------------------------------------------------------ README


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


# What the output of each line of the table must hold, and whether its answer is yes or no.
ANSWERS = {
    "inspect last.ckpt": (0, "ema_state_dict"),
    "inspect last.ckpt --tensors": (0, "model.encoder.0.weight"),
    "inspect last.ckpt --stats": (0, "mean"),
    "inspect last.ckpt --format html": (0, "<svg"),
    "inspect last.ckpt --json": (0, '"schema": "ckptool/inspect/1"'),
    "inspect runs/": (0, "checkpoint_e150"),
    "extract-ema": (0, "wrote"),
    "convert": (0, "wrote"),
    "convert --explain": (0, "explained: 11 of 11"),
    "average": (0, "wrote"),
    "promote-ema": (0, "ema.ckpt"),
    "diff 'last.ckpt#@model'": (1, "model.head"),
    "diff whole.pt": (1, "different"),
    "diff run_a run_b": (1, "the same until step 4"),
    "verify last.ckpt --require resume": (0, "Resume: yes, but not exactly the same"),
    "verify last.ckpt --require weights-only": (0, "passed"),
    "verify last.ckpt": (0, "passed"),
    "verify model.safetensors": (0, "passed"),
    "verify --latest-valid": (0, "checkpoint_e150"),
    "verify --best": (0, "checkpoint_best"),
    "verify released.safetensors": (0, "passed"),
    "verify best.ckpt": (0, "passed"),
}


def wishes() -> list[str]:
    return [match["line"] for match in WISH.finditer(README.read_text())]


def test_readme_answers_what_people_want():
    assert len(wishes()) >= 20


@pytest.mark.parametrize("line", wishes())
def test_lines_of_the_table_work(line):
    asked = line.removeprefix("ckptool ")
    code, word = ANSWERS[max((key for key in ANSWERS if asked.startswith(key)), key=len)]
    with reader_of(README.read_text()):
        output = typed(line)
    assert (output.exit_code, output.stderr) == (code, "")
    assert word in output


def test_picture_shows_what_is_printed():
    assert f"({PICTURE.relative_to(REPOSITORY)})" in README.read_text()
    shown = "".join(texts(PICTURE.read_text()))
    assert shown == "".join(texts(pictured())), "run python tests/test_docs.py"


def pictured() -> str:
    with reader_of(README.read_text()):
        return picture(PICTURED, WIDTH)


def test_ci_calls_the_test_command_of_the_readme():
    command = re.search(r"python3 -m venv .*pytest.*", README.read_text()).group()
    script = (REPOSITORY / ".ci/run").read_text().replace('"$work/venv', '".venv').replace('"', "")
    install, test = command.rsplit(" && ", 1)
    assert install in script
    assert test in script


def test_the_command_for_a_fresh_machine_shows_the_ema(ckptool):
    command = re.search(r"pip install -q \. && .venv/bin/ckptool (.*) (.*)", README.read_text())
    output = ckptool(command[1], REPOSITORY / command[2])
    assert "ema_state_dict" in output


# -------------------------------------------------------------------------------------------- site


@pytest.mark.parametrize("page", sorted({*pages(), *REPOSITORY.glob("*.md")}), ids=page_id)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_every_page_is_in_the_navigation():
    def listed(node) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [page for child in children for page in listed(child)]

    site = tomllib.loads((REPOSITORY / "zensical.toml").read_text())
    assert sorted(listed(site["project"]["nav"])) == sorted(
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
    )


CODE = re.compile(r"(?<=^```python\n)(?P<text>.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
SETTINGS = re.compile(r"(?<=^```toml\n)(?P<text>.*?)(?=^```$)", re.DOTALL | re.MULTILINE)


def test_python_of_the_documentation_runs(capsys):
    """The model of the reader takes the weights that it has by their names."""
    text = (DOCS / "python.md").read_text()
    taken = []
    known = {"model": SimpleNamespace(load_state_dict=taken.append)}
    with reader_of(text):
        for block in CODE.findall(text):
            exec(block, known)
    assert "backbone.conv1.weight" in taken[0]
    assert capsys.readouterr().out.startswith("torch-zip ")


@pytest.mark.parametrize("command", ["verify", "diff", "inspect"])
def test_settings_of_the_documentation_are_taken(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = SETTINGS.findall((DOCS / "configuration.md").read_text())
    (tmp_path / "ckptool.toml").write_text("\n".join(blocks))
    settings = read_settings(command, [])
    assert [layout.name for layout in settings.layouts] == ["ours"]
    assert bool(settings.options) == (command != "inspect")


def test_every_file_of_a_page_is_used():
    """By its name, or by that of the directory of a run that holds it."""
    for page in pages():
        text = page.read_text()
        lines = [
            *BLOCK.findall(text),
            *CODE.findall(text),
            *(match["line"] for match in WISH.finditer(text)),
        ]
        typed_there = "\n".join(lines)
        unused = [
            name
            for name in files_of(text)
            if not any(str(at) in typed_there for at in (Path(name), *Path(name).parents[:-1]))
        ]
        assert unused == [], page


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in OTHERS])
def test_every_option_is_explained(command, ckptool):
    shown = ckptool(command, "--help").stdout
    assert "--json" in shown
    for option in re.findall(r"^\s+(--[a-z-]+)[^\n]*$", shown, re.MULTILINE):
        assert re.search(rf"{option}\b.*\S", shown)


def update() -> None:
    """Write everything that is generated."""
    for page, made in GENERATED.items():
        page.write_text(made(page.read_text()))
    for page in pages():
        page.write_text(with_outputs(page.read_text()))
    PICTURE.write_text(pictured())


if __name__ == "__main__":
    update()

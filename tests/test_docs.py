"""The README tells the truth: its outputs are what the commands print, its two commands are CI's.

After a change of output: ``python tests/test_docs.py`` writes the new outputs into the README.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import formats_table
import package_tree

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OUTPUT = re.compile(
    r"<!-- output: ckptool (?P<args>.*?) -->\n```text\n(?P<text>.*?)```\n", re.DOTALL
)
COMMANDS = ("inspect", "extract-ema", "promote-ema", "verify", "diff")


def printed(args: str) -> str:
    process = subprocess.run(
        [sys.executable, "-m", "ckptool", *shlex.split(args)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return process.stdout


def examples() -> list[re.Match[str]]:
    return list(OUTPUT.finditer(README.read_text()))


@pytest.mark.parametrize("example", examples(), ids=lambda match: match["args"])
def test_readme_shows_what_is_printed(example):
    assert printed(example["args"]) == example["text"]


def test_readme_has_examples_of_every_command():
    assert {example["args"].split()[0] for example in examples()} == set(COMMANDS)


def test_the_table_of_formats_is_made_from_their_fields():
    text = README.read_text()
    assert text == formats_table.with_table(text), "run python tests/formats_table.py"


def test_the_tree_of_the_package_is_made_from_the_docstrings():
    text = package_tree.PAGE.read_text()
    assert text == package_tree.page(text), "run python tests/package_tree.py"


def test_ci_calls_the_test_command_of_the_readme():
    command = re.search(r"python3 -m venv .*pytest.*", README.read_text()).group()
    script = (ROOT / ".ci/run").read_text().replace('"$work/venv', '".venv').replace('"', "")
    install, test = command.rsplit(" && ", 1)
    assert install in script
    assert test in script


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command, ckptool):
    shown = ckptool(command, "--help").stdout
    assert "--json" in shown
    for option in re.findall(r"^\s+(--[a-z-]+)[^\n]*$", shown, re.MULTILINE):
        assert re.search(rf"{option}\b.*\S", shown)


def update() -> None:
    text = OUTPUT.sub(
        lambda match: (
            f"<!-- output: ckptool {match['args']} -->\n```text\n{printed(match['args'])}```\n"
        ),
        README.read_text(),
    )
    README.write_text(text)


if __name__ == "__main__":
    update()

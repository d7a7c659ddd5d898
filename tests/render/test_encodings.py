"""Streams that cannot show everything: the whole page comes, with other signs."""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
import torch

from ckptool import cli
from helpers.making import average_of, resumable, weights
from helpers.output import environment
from helpers.thinned import one_in

STREAMS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
COMMANDS = (
    "inspect a.pt", "inspect a.pt b.pt", "inspect a.pt --tensors --stats", "diff a.pt b.pt",
    "diff a.pt b.pt --stat", "diff a.pt b.pt --name-only", "diff a.pt b.pt --format md",
    "inspect a.pt --format html", "verify a.pt b.pt --format html",
    "diff a.pt b.pt --format html", "diff a.pt b.pt --format junit",
    "diff a.pt b.pt --format github", "diff a.pt b.pt --json", "verify a.pt b.pt",
    "verify a.pt --format md", "verify a.pt --format junit", "verify a.pt --format github",
    "verify a.pt --format sarif", "extract-ema a.pt --dry-run",
    "promote-ema a.pt -o c.pt --dry-run", "textconv a.pt", "layouts", "rule", "--help",
    "inspect nothing-…", "diff a.pt b.pt --color always", "inspect a.pt --color always",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints that differ, with names beyond ASCII."""
    folder = tmp_path_factory.mktemp("names")
    model = weights(**{f"größe.日本.{i}": torch.ones(2, 2) for i in range(3)})
    for name, factor in (("a", 1.0), ("b", 1.01)):
        state = {n: t * factor if t.is_floating_point() else t for n, t in model.items()}
        more = resumable(state) | {"val_loss": 0.5 * factor, "größe": f"日本 {name}"}
        torch.save({"model": state, "ema": average_of(state), **more}, folder / f"{name}.pt")
    return folder


def run(folder, command: str, env: dict[str, str]) -> tuple[int, bytes, bytes]:
    line = [sys.executable, "-m", "ckptool", *command.split()]
    extra = env or {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        line, cwd=folder, env=environment(extra), capture_output=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def run_here(command: str, encoding: str) -> tuple[int, bytes, bytes]:
    """The same in this process, with streams of an encoding."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        io.TextIOWrapper(out, encoding) as stdout,
        io.TextIOWrapper(err, encoding) as stderr,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        cli._take_every_letter()
        code = cli.main(command.split())
        stdout.flush()
        stderr.flush()
        return code, out.getvalue(), err.getvalue()


def assert_whole(page: tuple[int, bytes, bytes], shown: tuple[int, bytes, bytes], encoding: str):
    """The same code, and as many lines of answer and errors."""
    assert b"bug in ckptool" not in shown[2], shown
    assert (shown[0], shown[2].count(b"\n")) == (page[0], page[2].count(b"\n"))
    assert shown[1].decode(encoding).count("\n") == page[1].decode().count("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_comes_out_whole(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    page = run_here(command, "utf-8")
    for encoding in ("ascii", "latin-1"):
        assert_whole(page, run_here(command, encoding), encoding)


@pytest.mark.parametrize("command", one_in(12, COMMANDS, 1))
def test_processes_print_the_page_whole(command, folder):
    page = run(folder, command, {})
    for name, env in STREAMS.items():
        assert_whole(page, run(folder, command, env), "ascii" if name == "C" else name)


@pytest.mark.parametrize("name", STREAMS)
def test_columns_stay_columns(name, folder):
    _, shown, _ = run(folder, "diff a.pt b.pt", STREAMS[name])
    lines = shown.decode("ascii" if name == "C" else name).splitlines()
    table = lines[lines.index("Settings") + 1 :]
    assert len(table) == 2
    columns = [re.match(r"  \S+ +", line) for line in table]
    assert len({column.end() for column in columns}) == 1


@pytest.mark.parametrize("form", ["html", "junit"])
def test_markup_keeps_every_letter(form, folder):
    command = f"diff a.pt b.pt --format {form}"
    _, wanted, _ = run(folder, command, {})
    _, found, _ = run(folder, command, STREAMS["latin-1"])
    assert html.unescape(found.decode("ascii")) == html.unescape(wanted.decode("utf-8"))
    assert "größe" in html.unescape(found.decode("ascii"))
    if form == "junit":
        assert ET.tostring(ET.fromstring(found)) == ET.tostring(ET.fromstring(wanted))


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_chosen_file_is_printed_as_it_is_called(folder, tmp_path):
    name = os.fsdecode(b"run-\xff-\xc3\xa4.pt")
    (tmp_path / name).write_bytes((folder / "a.pt").read_bytes())
    for env in ({}, *STREAMS.values()):
        _, shown, _ = run(tmp_path, "verify --latest-valid .", env)
        assert shown == b"run-\xff-\xc3\xa4.pt\n" or env
        assert b"run-\xff-" in shown

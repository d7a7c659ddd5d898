"""Every file of ``fixtures/hostile``: nothing runs, and what must be said is said.

The judge of the payloads is Python itself: the files that the manifest calls live make their canary
when they are loaded, in a process and a folder of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch

from ckptool.commands.verify import Request, chosen_rules, verify_file
from helpers.output import environment
from helpers.paths import FIXTURES
from helpers.thinned import one_in

MANIFEST = json.loads((FIXTURES / "hostile" / "manifest.json").read_text())
CANARY = "canary"
OURS = ("CK1", "CK2")


def named(row) -> str:
    return row["name"]


def rows(**wanted):
    return [row for row in MANIFEST if all(row[key] == value for key, value in wanted.items())]


@pytest.fixture
def run(ckptool, tmp_path, monkeypatch):
    """Run a command in a folder of its own; no canary may appear there, and no traceback."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        output = ckptool(*args)
        assert not list(tmp_path.rglob(CANARY)), "the payload ran"
        assert "Traceback" not in output + output.stderr
        assert all(c.isprintable() or c == "\n" for c in output + output.stderr)
        return output

    return run


def test_the_corpus_is_as_large_as_promised():
    benign = [row for row in MANIFEST if row["family"] == "benign"]
    assert len(MANIFEST) - len(benign) >= 150
    assert len(benign) >= 25
    on_disk = {
        str(path.relative_to(FIXTURES))
        for folder in ("hostile", "malformed")
        for path in (FIXTURES / folder).rglob("*.*")
        if path.name != "manifest.json"
    }
    assert on_disk == {row["name"] for row in MANIFEST}


@pytest.mark.parametrize("row", MANIFEST, ids=named)
def test_inspect_answers_as_the_manifest_says(row, run):
    path = FIXTURES / row["name"]
    as_json, as_text = run("inspect", path, "--json"), run("inspect", path, "--tensors")
    wanted = 2 if row["expect"] == "refused" else 0
    assert (as_json.exit_code, as_text.exit_code) == (wanted, wanted), as_json
    if row["expect"] == "refused":
        assert as_json.json["error"]["code"] in {"damaged", "unsupported", "unknown-format"}
        assert (row["shows"] or "") in as_text.stderr
        return
    found = [f for f in as_json.json["findings"] if f["rule"].startswith(OURS)]
    if row["expect"] == "read":
        assert not found
        assert not [g for g in as_json.json["pickle"]["globals"] if g["trust"] == "dangerous"]
        return
    said = [f"{f['address']} {f['message']}" for f in found if f["rule"] == row["rule"]]
    assert any(_shown(row["shows"]) in _shown(text) for text in said), (row, found)
    assert row["rule"] in as_text
    assert _shown(row["shows"]) in _shown(as_text)


def _shown(text: str) -> str:
    """Quotes and escapes apart."""
    return (
        text.replace("\\\\", "\\")
        .replace("\x1b", "\\x1b")
        .replace("\x07", "\\x07")
        .replace('"', "'")
    )


@pytest.mark.parametrize("row", rows(live=True), ids=named)
def test_verify_fails_with_the_danger_itself(row, run):
    """Also where the file breaks off behind it: a loader would not have got so far unharmed."""
    verdict = run("verify", FIXTURES / row["name"], "--json")
    assert verdict.exit_code == 1
    if row["rule"] in {"CK201", None}:
        said = " ".join(f["message"] for f in verdict.json["findings"] if f["rule"] == "CK201")
        assert _shown(row["shows"]) in _shown(said)


@pytest.mark.parametrize(
    ("row", "command"),
    one_in(5, product(MANIFEST, ["extract-ema", "promote-ema"])),
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_the_writing_commands_run_nothing_either(row, command, run, tmp_path):
    done = run(command, FIXTURES / row["name"], "-o", tmp_path / "out.pt")
    assert done.exit_code == 2  # none has an EMA
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row", one_in(3, MANIFEST), ids=named)
def test_what_is_made_safe_is_plain_data(row, run, tmp_path):
    """Or it is refused: the safe loader takes every output."""
    done = run("convert", FIXTURES / row["name"], "--safe", "-o", tmp_path / "out.pt")
    assert done.exit_code in {0, 2}
    if done.exit_code == 0:
        torch.load(tmp_path / "out.pt", weights_only=True)
    else:
        assert list(tmp_path.iterdir()) == []


def advised(row) -> list[str]:
    """The lines of Python that the advice on a file comes to, as a person pastes them."""
    path = FIXTURES / row["name"]
    report = verify_file(path, Request(chosen_rules({"rules": ["CK2", "CK123", "CK124"]})))
    remedies = [found.remedy or "" for found in report.findings]
    load = f"import torch; torch.load({str(path)!r}, weights_only=True)"
    lines = [f"{remedy}\n{load}" for remedy in remedies if "add_safe_globals" in remedy]
    if any("save it again" in remedy for remedy in remedies):  # the file has to be loaded for it
        lines.append(load.replace("True", "False"))
    calls = [r.removeprefix("load it with ") for r in remedies if r.startswith("load it with ")]
    return lines + [f"import torch; path = {str(path)!r}; {call}" for call in calls]


HOSTILE = [row for row in MANIFEST if row["family"] != "benign" and row["expect"] != "refused"]


@pytest.mark.parametrize("row", HOSTILE, ids=named)
def test_no_advice_runs_the_payload(row, fresh_torch, tmp_path):
    """Whatever is advised is done, in a process of its own."""
    for line in advised(row):
        fresh_torch(line, tmp_path)
        assert not list(tmp_path.rglob(CANARY)), line


def test_of_no_live_file_a_name_is_to_be_allowed():
    live = [row for row in HOSTILE if row["live"]]
    assert len(live) >= 90
    assert not [row["name"] for row in live if any("add_safe" in line for line in advised(row))]


def test_what_is_advised_for_honest_files_loads_them(fresh_torch):
    """So the lines of the tests above are such that can be run."""
    lines = [line for row in rows(family="benign") for line in advised(row) if "add_safe" in line]
    assert len(lines) >= 4
    assert [fresh_torch(line).exit_code for line in lines] == [0] * len(lines)


# Loads in a child of its own each file that it is told, as JSON on a line, with torch at hand.
LOADER = """
import json, os, pickle, sys, warnings
import torch
warnings.simplefilter("ignore")

def load(path):
    if open(path, "rb").read(2) == b"PK" or ".pt" in path or path.endswith((".jpg", ".bin")):
        torch.load(path, weights_only=False)
    else:
        pickle.load(open(path, "rb"))

for line in sys.stdin:
    path, folder, said = json.loads(line)
    if child := os.fork():
        os.waitpid(child, 0)
        print("done", flush=True)
        continue
    os.chdir(folder)
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (0, 1, 2):
        os.dup2(output, stream)
    try:
        load(path)
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
"""
LIVE = [row for row in MANIFEST if row["live"]]
WITHOUT_TORCH = [row for row in LIVE if row["name"].endswith(".pkl") and "torch" not in row["name"]]
WITH_TORCH = [row for row in LIVE if row["name"].endswith(".pt")]


@pytest.fixture(scope="module")
def load_for_real(tmp_path_factory):
    """What a trusting loader does with a file, in a folder of its own; what it printed."""
    command = [sys.executable, "-c", LOADER]
    env = environment() | {"PYTHONPATH": str(FIXTURES)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, **pipes) as loader:

        def load(row, folder: Path) -> str:
            said = tmp_path_factory.mktemp("said") / "said.txt"
            task = [str(FIXTURES / row["name"]), str(folder), str(said)]
            print(json.dumps(task), file=loader.stdin, flush=True)
            assert loader.stdout.readline() == "done\n"
            for _ in range(100):  # a process of the payload's may take its time
                if (folder / CANARY).exists():
                    break
                time.sleep(0.02)
            return said.read_text(errors="replace")

        yield load
        loader.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("row", WITHOUT_TORCH + WITH_TORCH[::4], ids=named)
def test_the_payload_would_have_run(row, load_for_real, tmp_path):
    said = load_for_real(row, tmp_path)
    assert (tmp_path / CANARY).exists(), said

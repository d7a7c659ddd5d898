"""What a command that wrote weights says to type next: that line works as it stands."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from ckptool.render.next_step import next_step
from ckptool.reports.write import WeightsReport
from helpers.output import run_inside
from helpers.paths import FIXTURES

NEXT = "Next: "
LAST = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
CALLBACK = FIXTURES / "ema" / "emacallback" / "callback_only.ckpt"
FILE = 'from safetensors.torch import load_file; state_dict = load_file("{}")'
TORCH = 'import torch; state_dict = torch.load("{}", weights_only=True)'
OURS = 'from ckptool import load_state_dict; state_dict = load_state_dict("{}")'

# Command -> the line, for which {} is the output. All loaded state dicts have the same 11 tensors.
LOADED = {
    "extract-ema last.ckpt": (FILE, "last.ema.safetensors"),
    "extract-ema last.ckpt -o 'a b.safetensors'": (FILE, "a b.safetensors"),
    "extract-ema last.ckpt -o a.pt": (TORCH, "a.pt"),
    "extract-ema last.ckpt -o a.pt --wrap state_dict": (TORCH + '["state_dict"]', "a.pt"),
    "extract-ema last.ckpt -o a.pt --wrap 'a\"b'": (TORCH + '["a\\"b"]', "a.pt"),
    "extract-ema last.ckpt -o a.dcp": (OURS, "a.dcp"),
    "extract-ema last.ckpt -o a.safetensors --max-shard-size 300": (
        OURS, "a.safetensors.index.json",
    ),
    "convert 'last.ckpt#@model' -o a.safetensors": (FILE, "a.safetensors"),
    "convert 'last.ckpt#@ema' -o a.bin --wrap model": (TORCH + '["model"]', "a.bin"),
    "average last.ckpt other.ckpt --only model -o a.safetensors": (FILE, "a.safetensors"),
    "average last.ckpt other.ckpt --only model -o a.pt --wrap m": (TORCH + '["m"]', "a.pt"),
}  # fmt: skip

# Command -> what is typed next, and its exit code.
CHECKED = {
    "promote-ema last.ckpt -o p.ckpt": ("verify p.ckpt --against last.ckpt", 0),
    "promote-ema last.ckpt -o 'p 1.ckpt'": ("verify 'p 1.ckpt' --against last.ckpt", 0),
    "promote-ema last.ckpt -o ./-p.ckpt": ("verify ./-p.ckpt --against last.ckpt", 0),
    "convert last.ckpt --whole -o ./-s.ckpt": ("diff last.ckpt ./-s.ckpt", 0),
    "promote-ema last.ckpt --in-place --backup": ("verify last.ckpt --against last.ckpt.bak", 0),
    "promote-ema last.ckpt --in-place": ("verify last.ckpt --require ema", 0),
    "convert last.ckpt --drop optimizer -o s.ckpt": ("diff last.ckpt s.ckpt", 1),
    "convert last.ckpt --whole -o s.ckpt": ("diff last.ckpt s.ckpt", 0),
    "average last.ckpt other.ckpt --only model --into last.ckpt -o m.ckpt": (
        "verify m.ckpt --require ema", 0,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    """A folder with two checkpoints of one model."""
    shutil.copy(CALLBACK, tmp_path / "last.ckpt")
    shutil.copy(LAST, tmp_path / "other.ckpt")
    monkeypatch.chdir(tmp_path)


def told(command: str) -> str:
    """Run a command, and return what it says to type next: the last line of its answer."""
    done = run_inside(*shlex.split(command))
    assert done.exit_code == 0, done
    before, last = done.splitlines()[-2:]
    assert before == ""
    assert last.startswith(NEXT)
    return last.removeprefix(NEXT)


def loaded(statement: str, **known) -> dict:
    """Run a line of Python that is typed as it stands, and return the names that it has bound."""
    names = dict(known)
    exec(statement, names)
    return names


@pytest.mark.parametrize("command", LOADED)
def test_the_line_in_python_loads_what_was_written(command):
    line, output = LOADED[command]
    statement = told(command)
    assert statement == line.format(output)
    assert len(loaded(statement)["state_dict"]) == 11


@pytest.mark.parametrize("command", CHECKED)
def test_the_line_for_the_shell_works(command):
    line, code = CHECKED[command]
    typed = told(command)
    assert typed == f"ckptool {line}"
    assert run_inside(*shlex.split(typed)[1:]).exit_code == code


def test_shared_tensors_that_are_written_once_are_loaded_into_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    torch.save({"model": model.state_dict()}, "tied.pt")
    statement = told("convert tied.pt#model -o a.safetensors")
    assert statement == (
        'from safetensors.torch import load_model; load_model(model, "a.safetensors")'
    )
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    other[1].weight = other[0].weight
    loaded(statement, model=other)
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_checkpoint_that_became_plain_data_is_loaded_safely():
    torch.save({"model": {"w": torch.ones(2)}, "at": Path("a/b")}, "path.pt")
    statement = told("convert path.pt --safe -o a.pt")
    assert statement == 'import torch; checkpoint = torch.load("a.pt", weights_only=True)'
    assert loaded(statement)["checkpoint"].keys() == {"model", "at"}


def test_promotions_of_every_framework_are_proved_by_the_line():
    """Of what the source has wrong, a copy has the same wrong."""
    proved, wrong = [], []
    for path in sorted(FIXTURES.glob("ema/*/*.*")):
        done = run_inside("promote-ema", path, "-o", f"{len(proved)}{path.suffix}")
        if done.exit_code == 0:
            checked = run_inside(*shlex.split(done.splitlines()[-1].removeprefix(NEXT))[1:])
            (wrong if "CK7" in checked else proved).append(path)
    assert wrong == []
    assert len(proved) > 20


def test_a_dry_run_has_no_next_step_nor_has_json():
    for options in (("--dry-run",), ("--json",)):
        assert NEXT not in run_inside("extract-ema", "last.ckpt", *options)


@pytest.mark.parametrize(
    ("path", "shown"),
    [("a.pt", '"a.pt"'), ('"a".pt', '"\\"a\\".pt"'), ("a\\b.pt", '"a\\\\b.pt"'), ("a\nb.pt", None)],
)
def test_paths_are_literals_of_python(path, shown):
    report = WeightsReport(output=path, format="torch-zip", written=True, tensors=1, bytes=4)
    lines = [line.text for line in next_step(report)]
    said = f"Next: import torch; state_dict = torch.load({shown}, weights_only=True)"
    assert lines == ([] if shown is None else ["", said])


def test_a_path_that_cannot_be_typed_is_not_shown():
    """The escaped path would name another file."""
    done = run_inside("extract-ema", "last.ckpt", "-o", "a\x1b[31m.safetensors")
    assert done.exit_code == 0
    assert NEXT not in done

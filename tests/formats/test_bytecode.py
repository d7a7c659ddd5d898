"""Programs for torch's lite interpreter are told as TorchScript's code is."""

from __future__ import annotations

import zipfile

import pytest
import torch
from torch.jit.mobile import _load_for_lite_interpreter

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Adds(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(4.0))
        self.training = False

    def forward(self, x: torch.Tensor):
        return x + self.weight


class Stated(Adds):
    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]


class Saves(Stated):
    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]
        torch.save(state[0], "canary")


class SavesWhenCalled(Adds):
    def forward(self, x: torch.Tensor):
        torch.save(x, "canary")
        return x + self.weight


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A model for the lite interpreter whose archive has no code but the bytecode."""
    monkeypatch.chdir(tmp_path)

    def saved(module: torch.nn.Module):
        torch.jit.script(module)._save_for_lite_interpreter("whole")
        with zipfile.ZipFile("whole") as made, zipfile.ZipFile("model.ptl", "w") as kept:
            for name in made.namelist():
                if "/code/" not in name:
                    kept.writestr(name, made.read(name))
        return tmp_path / "model.ptl"

    return saved


@pytest.mark.parametrize(
    ("module", "code", "rules"),
    [
        (Saves, 1, {"CK201", "CK204"}),
        (Stated, 0, {"CK204"}),
        (SavesWhenCalled, 0, {"CK204"}),
        (Adds, 0, set()),
    ],
)
def test_what_the_bytecode_runs_is_told(module, code, rules, saved, ckptool, tmp_path):
    output = ckptool("verify", saved(module()), "--rules", "CK201,CK204", "--json")
    found = output.json["findings"]
    assert (output.exit_code, {f["rule"] for f in found}) == (code, rules)
    assert {f["address"].rpartition("/")[2] for f in found} <= {"bytecode.pkl"}
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("module", "runs"), [(Saves, True), (SavesWhenCalled, False)])
def test_the_lite_interpreter_runs_what_is_told_so(module, runs, saved, tmp_path):
    """Otherwise the test above would test nothing."""
    _load_for_lite_interpreter(str(saved(module())))
    assert (tmp_path / "canary").exists() is runs

"""A hint names only options that the command has which ran, or a command that the hint names.

Every run of a command in these tests is held to it (``helpers/output.py``).
"""

from __future__ import annotations

import pytest
import torch

from helpers.hints import foreign_options
from helpers.making import average_of, weights


@pytest.fixture
def files(tmp_path, monkeypatch):
    """``none.pt`` has no EMA, ``two.pt`` has two; both hold the same model."""
    monkeypatch.chdir(tmp_path)
    model = weights()
    fast = average_of(model)
    torch.save({"model": model}, "none.pt")
    torch.save({"model": model, "ema": {"fast": fast, "slow": average_of(fast)}}, "two.pt")


TAKING = {
    "verify": ("verify", "none.pt", "--against", "{}"),
    "diff": ("diff", "{}#@ema", "none.pt"),
    "convert": ("convert", "{}#@ema", "-o", "out.pt"),
    "average": ("average", "{}#@ema", "{}#@ema", "-o", "out.pt"),
    "extract-ema": ("extract-ema", "{}"),
    "promote-ema": ("promote-ema", "{}", "-o", "out.pt"),
}
BY_OPTION = ("extract-ema", "promote-ema")


@pytest.mark.parametrize("command", TAKING)
@pytest.mark.parametrize("file", ["none.pt", "two.pt"])
def test_the_weights_are_named_as_the_command_takes_them(command, file, files, ckptool):
    done = ckptool(*(word.format(file) for word in TAKING[command]))
    hint = done.stderr.partition("hint: ")[2]
    assert done.exit_code == 2
    assert ("--ema" in hint) == (command in BY_OPTION)
    assert (f"{file}#" in hint) == (command not in BY_OPTION or file == "none.pt")


@pytest.mark.parametrize(
    ("args", "hint", "foreign"),
    [
        (("verify", "a.pt"), "name it: --ema ADDRESS", ["--ema"]),
        (("a.pt",), "--force replaces it, --match fits", ["--force"]),
        (("extract-ema", "a.pt"), "name it: --ema ADDRESS", []),
        (("verify", "a.pt"), "ckptool extract-ema --ema ADDRESS", []),
        (("--json", "verify", "a.pt"), "--no-bytes reads less", []),
    ],
)
def test_an_option_that_can_be_typed_nowhere_is_found(args, hint, foreign):
    assert foreign_options(args, f"error: a.pt: no\nhint: {hint}\n") == foreign


def test_bytes_that_something_else_views_are_no_option_of_average(tmp_path, ckptool):
    """Only ``promote-ema`` has ``--allow-shared``."""
    shared = torch.ones(4, 4)
    path = tmp_path / "step1.pt"
    torch.save({"model": {"w": shared}, "best": {"w": shared[:2]}}, path)
    other = tmp_path / "step2.pt"
    torch.save({"model": {"w": torch.zeros(4, 4)}}, other)
    out = tmp_path / "out.pt"
    done = ckptool("average", path, other, "--only", "model", "--into", path, "-o", out)
    assert done.exit_code == 2
    assert "hint: leave out --into: the average is written as a file of its own" in done.stderr

"""Completion: commands, options, rules, and places in a checkpoint; nothing that shells run."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
from typer._completion_shared import get_completion_script

from ckptool.cli import completion
from ckptool.cli.program import program
from ckptool.commands.operands import keys_at
from helpers.output import run_process

SHELLS = ("bash", "zsh", "fish")


def completed(*words, **options):
    """Return what bash is offered for the last of the words."""
    env = {
        "_CKPTOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["ckptool", *map(str, words)]),
        "COMP_CWORD": str(len(words)),
    }
    return run_process(env=env, **options).split()


@pytest.fixture
def file(tmp_path):
    state = {"model": {"bn.weight": torch.ones(2), "bn.bias": torch.ones(2)}, "epoch": 3}
    torch.save({**state, "args": {"lr": 0.1}, "$(touch x)": 1, "a b": 2}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_commands_and_options_are_completed():
    assert {"inspect", "verify", "diff"} <= set(completed(""))
    assert completed("ver") == ["verify"]
    assert completed("verify", "--req") == ["--require"]
    assert completed("inspect", "--color", "al") == ["always"]


def test_rules_and_requirements_are_completed_behind_a_comma_too():
    assert "CK404" in completed("rule", "CK40")
    assert completed("verify", "--require", "ema,fin") == ["ema,finite"]
    assert "CK1,CK404" in completed("verify", "--rules", "CK1,CK40")


def test_places_in_a_checkpoint_are_completed(file):
    assert completed("inspect", f"{file}#") == [
        f"{file}#{key}" for key in ("@ema", "@model", "model/", "epoch", "args/")
    ]
    assert completed("diff", f"{file}#model/bn.w") == [f"{file}#model/bn.weight"]
    assert completed("extract-ema", f"{file}#ar") == [f"{file}#args/"]


@pytest.mark.parametrize(
    ("typed", "offered"), [(["@"], ["@ema", "@model"]), (["@", "e"], ["@ema"])]
)
def test_roles_are_completed_although_bash_cuts_words_at_an_at_sign(typed, offered, file):
    """Bash replaces what the sign begins, so that the path must not be offered again."""

    def of_words(*words):
        typed = "\n".join(map(str, ("ckptool", *words)))
        env = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words))}
        return run_process(env={"_CKPTOOL_COMPLETE": "complete_bash", **env}).split()

    assert of_words("inspect", f"{file}#", *typed) == offered
    assert of_words("diff", f"{file}#", "@", "model", f"{file}#", *typed) == offered
    assert of_words("diff", f"{file}#", "@", "model", f"{file}#mo") == [f"{file}#model/"]
    assert "--match" in of_words("diff", f"{file}#", "@", "model", "--ma")


def test_keys_are_escaped_as_in_key_paths(tmp_path):
    torch.save({"a/b": {"c*": 1}, 0: []}, tmp_path / "a.pt")
    assert keys_at(str(tmp_path / "a.pt"), "") == ["@ema", "@model", "a~1b/", "0"]
    assert keys_at(str(tmp_path / "a.pt"), "a~1b") == ["c~2"]


def test_a_path_is_left_to_the_shell_and_an_error_completes_nothing(file):
    assert completed("inspect", str(file)) == []
    assert completed("inspect", f"{file}x#") == []
    assert completed("inspect", f"{file}#none/") == []


def test_words_that_a_shell_would_evaluate_are_not_offered(file):
    words = completion.operands(f"{file}#")
    assert not any(set(word) & set("$`();&|<>'\"\\ \n") for word in words)
    folder = file.parent / "$(x)"
    folder.mkdir()
    shutil.copy(file, folder)
    assert completion.operands(f"{folder / 'a.pt'}#") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_for_the_shells_are_shown(shell):
    env = {"_CKPTOOL_COMPLETE": f"source_{shell}"}
    script = run_process(env=env)
    assert "ckptool" in script
    assert f"complete_{shell}" in script


def test_the_first_tab_of_zsh_completes(tmp_path):
    """zsh loads the script at the first Tab as a function, so that it has to complete, too."""
    program([])
    names = {"prog_name": "ckptool", "complete_var": "_CKPTOOL_COMPLETE"}
    script = get_completion_script(shell="zsh", **names)
    assert script.startswith("#compdef ckptool\n")
    assert script.endswith('loadautofunc ]]; then\n  _ckptool_completion "$@"\nfi')
    if zsh := shutil.which("zsh"):
        (tmp_path / "_ckptool").write_text(script)
        subprocess.run([zsh, "-f", "-n", str(tmp_path / "_ckptool")], check=True)
        tried = f"fpath=({tmp_path}); autoload -Uz _ckptool; words=(c) CURRENT=1; "
        tried += "compdef() { true; }; env() { print 'print completes'; }; _ckptool"
        done = subprocess.run([zsh, "-f", "-c", tried], check=True, capture_output=True, text=True)
        assert done.stdout == "completes\n"


def test_bash_takes_the_script(tmp_path):
    bash = shutil.which("bash")
    assert bash
    script = tmp_path / "completion.sh"
    script.write_text(run_process(env={"_CKPTOOL_COMPLETE": "source_bash"}))
    subprocess.run([bash, "--norc", "-n", str(script)], check=True)

"""What other programs start: the GitHub Action, the pre-commit hook, the job for GitLab.

The steps of the Action run here as on a runner: the same shell with the same options, inputs in the
environment, files for outputs and summary. Only Python's environment is a stand-in.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from helpers.output import environment
from helpers.paths import FIXTURES, REPOSITORY
from helpers.published import assert_junit
from helpers.thinned import one_in

ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text())
HOOKS = REPOSITORY / ".pre-commit-hooks.yaml"
RELEASE = REPOSITORY / ".github" / "workflows" / "release.yml"
GITLAB = REPOSITORY / ".gitlab" / "verify.yml"
AVERAGED = FIXTURES / "ema" / "has_ema" / "late.pt"
EXPRESSION = re.compile(r"\$\{\{ *(\S+) *\}\}")

# Makes what `python -m venv` makes, as far as the Action uses it: a pip that installs nothing.
VENV = """#!/usr/bin/env bash
set -eu
[ "$1 $2" = "-m venv" ]
mkdir -p "$3/bin"
printf '#!/bin/sh\\necho "$@" >> "{log}"\\n' > "$3/bin/pip"
printf '#!/bin/sh\\nexec "{python}" -m ckptool "$@"\\n' > "$3/bin/ckptool"
chmod +x "$3/bin/pip" "$3/bin/ckptool"
"""


class Ran(NamedTuple):
    """What a run of the Action left behind."""

    exit_code: int
    log: str
    summary: str
    outputs: dict[str, str]
    installed: str


class Runner:
    """Runs the Action's own steps in a folder, as GitHub's runner does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temp = folder / "runner temp"
        self.pip_log = self.temp / "pip.log"
        self.python = self.temp / "python"
        self.temp.mkdir()
        self.python.write_text(VENV.format(log=self.pip_log, python=sys.executable))
        self.python.chmod(0o755)

    def __call__(self, **inputs: str) -> Ran:
        known = {"steps.python.outputs.python-path": str(self.python)}
        for name, declared in ACTION["inputs"].items():
            known[f"inputs.{name}"] = inputs.pop(name, declared.get("default", ""))
        assert not inputs, "an input that the Action does not have"
        log, code, outputs = "", 0, {}
        for step in ACTION["runs"]["steps"]:
            if "run" in step and not code:
                code, said, outputs = self._step(step, known)
                log += said
                known |= {f"steps.{step['id']}.outputs.{k}": v for k, v in outputs.items()}
        summary = self.temp / "summary"
        return Ran(code, log, summary.read_text(), outputs, self.pip_log.read_text())

    def _step(self, step: dict, known: dict[str, str]) -> tuple[int, str, dict[str, str]]:
        assert step["shell"] == "bash"
        script, output, summary = (self.temp / name for name in ("script.sh", "output", "summary"))
        script.write_text(step["run"])
        output.write_text("")
        summary.touch()
        env = {name: EXPRESSION.sub(lambda m: known[m[1]], v) for name, v in step["env"].items()}
        env |= {
            "RUNNER_TEMP": str(self.temp), "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTION_PATH": str(REPOSITORY),
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            env=environment(env), cwd=self.folder, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        pairs = (line.split("=", 1) for line in output.read_text().splitlines())
        return done.returncode, done.stdout + done.stderr, dict(pairs)


@pytest.fixture
def action(tmp_path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture
def half(tmp_path) -> Path:
    """A checkpoint that was cut off."""
    path = tmp_path / "half.pt"
    path.write_bytes(AVERAGED.read_bytes()[: AVERAGED.stat().st_size // 2])
    return path


# ----------------------------------------------------------------------------------- what they are


def checked(*args: str, **env: str) -> None:
    """Another program finds nothing wrong."""
    command = [sys.executable, "-m", *args]
    done = subprocess.run(
        command, env=environment(env), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-actions", REPOSITORY / "action.yml"),
        ("vendor.github-workflows", REPOSITORY / ".github" / "workflows" / "ci.yml"),
        ("vendor.github-workflows", RELEASE),
        ("vendor.gitlab-ci", GITLAB),
    ],
    ids=str,
)
def test_it_has_the_published_form(schema, path):
    checked("check_jsonschema", "--builtin-schema", schema, str(path))


def test_only_the_job_that_publishes_may_get_a_token():
    """Trusted publishing: the index trusts this workflow, and no secret is kept anywhere."""
    workflow = yaml.safe_load(RELEASE.read_text())
    rights = {name: job.get("permissions", {}) for name, job in workflow["jobs"].items()}
    assert workflow["permissions"] == {"contents": "read"}
    assert rights == {"build": {}, "publish": {"id-token": "write"}}
    assert "secrets." not in RELEASE.read_text()


def test_pre_commit_takes_the_hooks(tmp_path):
    checked("pre_commit", "validate-manifest", str(HOOKS), PRE_COMMIT_HOME=str(tmp_path))


def test_no_script_of_the_action_holds_an_expression():
    """It would be pasted into the script before bash sees it: an input could then be code."""
    scripts = [step["run"] for step in ACTION["runs"]["steps"] if "run" in step]
    assert scripts
    assert not [script for script in scripts if "${{" in script]


def test_every_input_and_output_of_the_action_is_used():
    text = (REPOSITORY / "action.yml").read_text()
    assert {f"inputs.{name}" for name in ACTION["inputs"]} == {
        name for name in EXPRESSION.findall(text) if name.startswith("inputs.")
    }
    assert all(f'"{name}=' in text for name in ACTION["outputs"])


# ------------------------------------------------------------------------------------- the Action


def test_a_good_checkpoint_passes_with_a_summary(action):
    ran = action(paths=str(AVERAGED), require="ema")
    assert ran.exit_code == 0, ran.log
    assert ran.summary.startswith("### ✅ passed: ")
    assert "Required: ema." in ran.summary
    assert "::error" not in ran.log
    assert ran.outputs == {"exit-code": "0"}


def test_a_bad_one_fails_with_annotations_and_a_summary(action, half):
    ran = action(paths=half.name)
    assert ran.exit_code == 1
    assert re.search(r"^::error file=half\.pt,title=CK10\d ", ran.log, re.MULTILINE)
    assert ran.summary.startswith("### ❌ failed: `half.pt`")
    assert ran.outputs == {"exit-code": "1"}


def test_what_cannot_be_done_is_an_annotation_too(action):
    ran = action(paths="missing.pt")
    assert ran.exit_code == 2
    assert "::error file=missing.pt,title=ckptool::no such file" in ran.log
    assert ran.outputs == {"exit-code": "2"}


def test_the_options_are_handed_on(action):
    young = str(FIXTURES / "ema" / "emacallback" / "exported.ckpt")  # has a warning
    assert action(paths=young).exit_code == 0
    assert action(paths=young, strict="true").exit_code == 1
    assert action(paths=young, strict="true", ignore="CK407").exit_code == 0
    assert set(re.findall(r"CK\d", action(paths=young, select="CK1").log)) == {"CK1"}
    assert action(paths=young, require="nonsense").exit_code == 2


def test_lines_are_paths_and_stars_are_expanded(action, half):
    (half.parent / "a b.pt").write_bytes(AVERAGED.read_bytes())
    (half.parent / "a c.pt").write_bytes(AVERAGED.read_bytes())
    ran = action(paths="  a *.pt\n\nhalf.pt  \n")
    assert ran.summary.startswith("## ❌ 2 of 3 passed")


@pytest.mark.parametrize(
    ("name", "suffix", "start"),
    [("code-scanning", ".sarif", "{"), ("sarif", ".sarif", "{"), ("junit", ".xml", "<?xml"),
     ("json", ".json", "{"), ("md", ".md", "### ")],
)  # fmt: skip
def test_a_report_is_written_on_request_also_when_it_fails(name, suffix, start, action, half):
    ran = action(paths=half.name, format=name)
    assert ran.exit_code == 1
    report = Path(ran.outputs["report"])
    assert report.suffix == suffix
    assert report.read_text().startswith(start)


HOSTILE = (
    "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "',
    "--report=md=pwned", "x\ny; touch pwned",
)  # fmt: skip


@pytest.mark.parametrize(("name", "hostile"), one_in(5, product(ACTION["inputs"], HOSTILE)))
def test_no_input_is_code_or_an_option(name, hostile, action):
    ran = action(**({"paths": str(AVERAGED)} | {name: hostile}))
    assert not (action.folder / "pwned").exists()
    assert ran.exit_code == (0 if name in {"strict", "version"} else 2)


@pytest.mark.parametrize(
    ("version", "installed"), [("", str(REPOSITORY)), ("0.2.0", "ckptool==0.2.0")]
)
def test_it_installs_itself_or_a_version_and_never_torch(version, installed, action):
    ran = action(paths=str(AVERAGED), version=version)
    assert ran.installed.split()[-1] == installed
    assert "torch" not in ran.installed


# ------------------------------------------------------------------------------- the other two


def test_the_hook_runs_on_the_files_it_names(ckptool_process, half):
    (hook,) = yaml.safe_load(HOOKS.read_text())
    assert all(re.search(hook["files"], name) for name in ("a/last.ckpt", "b.pt", "c.safetensors"))
    assert not re.search(hook["files"], "a.py")
    program, *args = shlex.split(hook["entry"])
    assert program == "ckptool"
    assert ckptool_process(*args, AVERAGED).exit_code == 0
    assert ckptool_process(*args, AVERAGED, half).exit_code == 1


@pytest.mark.slow
def test_the_job_for_gitlab_writes_the_report_that_it_names(tmp_path, half):
    (job,) = yaml.safe_load(GITLAB.read_text()).values()
    install, verify = job["script"]
    assert shlex.split(install)[:2] == ["pip", "install"]
    stub = tmp_path / "bin" / "ckptool"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckptool "$@"\n')
    stub.chmod(0o755)
    env = {
        "PATH": f"{stub.parent}:{os.environ['PATH']}",
        "CHECKPOINTS": half.name,
        "REQUIRE": "ema",
    }
    done = subprocess.run(["bash", "-ec", verify], env=environment(env), cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert_junit((tmp_path / job["artifacts"]["reports"]["junit"]).read_text())

"""A configuration in the directory of a checkpoint may come with it: it never loosens a check.

One above the directory of the checkpoint, or the file of ``--config``, is the user's own.
"""

from __future__ import annotations

import json
import os

import pytest
import torch

from helpers.twins import drawn, near, save

LAYOUT = """
[[layouts]]
name = "theirs"
library = "theirs"
ema_at = "model"
model_at = "model"
beside = ["ema"]
"""
LOOSE = {
    "verify": (
        'ignore_rules = ["CK2", "CK3"]', 'rules = ["CK101"]', 'ignore = ["CK3"]',
        'select = ["CK101"]', "values = false", "bytes = false", "strict = false",
    ),
    "diff": (
        "atol = 1e9", "rtol = 1.0", "ulp = 1000000", "any_dtype = true",
        'match = ["nothing*", "model*"]', 'ignore = ["*"]', 'map = ["^model=ema"]',
        'tolerance = { "*" = 1e9 }',
    ),
}  # fmt: skip


@pytest.fixture
def download(tmp_path, monkeypatch):
    """A directory with everything that came with a checkpoint, in which one works."""
    folder = tmp_path / "download"
    model = drawn()
    broken = {**model, "broken": torch.tensor([torch.nan])}
    save(folder / "model.pt", {"model": broken, "ema": near(model)})
    other = {name: tensor + 1 for name, tensor in model.items()}
    save(folder / "other.pt", {"model": other, "ema": near(model)})
    monkeypatch.chdir(folder)
    return folder


ARGUMENTS = {
    "verify": ("verify", "model.pt", "--values", "--json"),
    "diff": ("diff", "model.pt", "other.pt", "--json"),
}


def without_config(document):
    return {key: value for key, value in document.items() if key != "config"}


@pytest.mark.parametrize(("command", "option"), [(c, o) for c in LOOSE for o in LOOSE[c]])
@pytest.mark.parametrize("file", ["ckptool.toml", "pyproject.toml"])
def test_an_option_that_loosens_is_ignored(command, option, file, download, ckptool):
    strict = ckptool(*ARGUMENTS[command])
    assert strict.exit_code == 1
    table = command if file == "ckptool.toml" else f"tool.ckptool.{command}"
    (download / file).write_text(f"[{table}]\n{option}\n")
    done = ckptool(*ARGUMENTS[command])
    name = f"{command}.{option.partition(' ')[0]}"
    assert done.exit_code == 1
    assert without_config(done.json) == strict.json
    assert done.json["config"] == [{"path": str(download / file), "used": [], "ignored": [name]}]
    (note,) = done.stderr.splitlines()
    assert name in note
    assert f"--config {download / file}" in note


@pytest.mark.parametrize("command", ["inspect", "verify", "extract-ema", "promote-ema"])
def test_a_layout_beside_the_checkpoint_changes_nothing(command, download, ckptool):
    options = () if command in {"inspect", "verify"} else ("--dry-run",)
    options += ("-o", "out.pt") if command == "promote-ema" else ()
    before = ckptool(command, "model.pt", *options, "--json").json
    (download / "ckptool.toml").write_text(LAYOUT)
    done = ckptool(command, "model.pt", *options, "--json")
    assert without_config(done.json) == before
    assert done.json["config"][0]["ignored"] == ["layouts"]


def test_options_that_only_refuse_more_are_taken(download, ckptool):
    """Who works in the directory of a checkpoint keeps the stricter half of the configuration."""
    (download / "ckptool.toml").write_text(
        '[verify]\nrequire = ["resume"]\nstrict = true\nvalues = true\nignore_rules = ["CK3"]\n'
    )
    done = ckptool("verify", "model.pt", "--json")
    assert (done.exit_code, done.json["required"], done.json["strict"]) == (1, ["resume"], True)
    assert done.json["config"][0]["used"] == ["verify.require", "verify.strict", "verify.values"]
    assert done.json["config"][0]["ignored"] == ["verify.ignore_rules"]


def test_the_file_of_the_option_is_the_users_own(download, ckptool):
    (download / "ckptool.toml").write_text('[verify]\nrules = ["CK101"]\n')
    done = ckptool("verify", "model.pt", "--config", "ckptool.toml", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [check["rule"] for check in done.json["checks"]] == ["CK101"]
    assert done.json["config"] == [
        {"path": "ckptool.toml", "used": ["verify.rules"], "ignored": []}
    ]


ASKED = {
    "a requirement": (("--require", "finite"), "CK3"),
    "a requirement, one rule ignored": (("--require", "finite"), "CK301"),
    "a family": (("--rules", "CK3", "--values"), "CK3"),
    "a rule": (("--rules", "CK301"), "CK3"),
    "the old name": (("--select", "CK301"), "CK3"),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("config", ["found", "named"])
def test_what_is_asked_for_on_the_command_line_is_not_ignored_by_a_configuration(
    config, name, tmp_path, monkeypatch, ckptool
):
    """Not even by the user's own; what is typed can be taken back by what is typed."""
    monkeypatch.chdir(tmp_path)
    asked, ignored = ASKED[name]
    path = save(tmp_path / "runs" / "last.pt", {"model": {"w": torch.tensor([torch.nan])}})
    file = tmp_path / ("ckptool.toml" if config == "found" else "mine.toml")
    file.write_text(f'[verify]\nignore_rules = ["{ignored}"]\n')
    named = ("--config", file) if config == "named" else ()
    assert ckptool("verify", path, *asked, *named).exit_code == 1
    assert ckptool("verify", path, *asked, *named, "--ignore-rules", "CK3").exit_code == 0
    assert ckptool("verify", path, "--values", *named).exit_code == (ignored != "CK3")


def test_a_rule_that_does_not_exist_is_an_error_in_a_configuration_too(download, ckptool):
    (download.parent / "ckptool.toml").write_text('[verify]\nignore_rules = ["CK999"]\n')
    done = ckptool("verify", "model.pt")
    assert (done.exit_code, "no rule 'CK999'" in done.stderr) == (2, True)


def test_a_layout_does_not_make_the_model_weights_an_ema(tmp_path, monkeypatch, ckptool):
    """Not even the user's own: it contradicts what the file says, so nothing is chosen."""
    monkeypatch.chdir(tmp_path)
    model = drawn()
    path = save(tmp_path / "runs" / "last.pt", {"model": model, "ema": near(model)})
    (tmp_path / "ckptool.toml").write_text(LAYOUT)
    done = ckptool("extract-ema", path, "-o", "out.pt")
    assert done.exit_code == 2
    assert "2 places could be meant: model (ema), ema (ema)" in done.stderr
    assert not (tmp_path / "out.pt").exists()


def test_a_project_decides_on_the_runs_below_it(tmp_path, monkeypatch, ckptool):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "runs" / "a" / "last.pt", {"model": {"w": torch.tensor([torch.nan])}})
    assert ckptool("verify", path, "--values").exit_code == 1
    (tmp_path / "ckptool.toml").write_text('[verify]\nignore_rules = ["CK3"]\n')
    done = ckptool("verify", path, "--values", "--json")
    assert done.exit_code == 0
    (used,) = done.json["config"]
    assert used == {
        "path": str(tmp_path / "ckptool.toml"), "used": ["verify.ignore_rules"], "ignored": []
    }  # fmt: skip
    assert done.stderr == f"note: {tmp_path / 'ckptool.toml'} decides on verify.ignore_rules\n"
    monkeypatch.chdir(tmp_path / "runs")
    assert ckptool("verify", "a/last.pt", "--values").exit_code == 0


def test_a_foreign_configuration_does_not_hide_the_projects(download, ckptool):
    """Not even where it is nearer."""
    (download.parent / "ckptool.toml").write_text('[verify]\nrequire = ["ema"]\n')
    (download / "ckptool.toml").write_text('[verify]\nrequire = ["finite"]\nignore = ["CK4"]\n')
    done = ckptool("verify", "model.pt", "--json")
    assert sorted(done.json["required"]) == ["ema", "finite"]
    assert [(use["used"], use["ignored"]) for use in done.json["config"]] == [
        (["verify.require"], ["verify.ignore"]), (["verify.require"], [])
    ]  # fmt: skip


@pytest.mark.parametrize("operand", [".", "..", "../download", "link.pt", "sub/../model.pt"])
def test_every_way_to_name_the_place_is_seen_through(operand, download, tmp_path, ckptool):
    (download / "sub").mkdir()
    save(tmp_path / "elsewhere" / "x.pt", {"model": drawn()})
    (download / "link.pt").symlink_to(tmp_path / "elsewhere" / "x.pt")
    (download / "ckptool.toml").write_text('[verify]\nignore_rules = ["CK1"]\n')
    assert "verify.ignore_rules" in ckptool("verify", operand, "--json").stderr


def test_a_link_into_the_directory_is_seen_through(download, tmp_path, ckptool):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.pt").symlink_to(download / "model.pt")
    (download / "ckptool.toml").write_text('[verify]\nignore_rules = ["CK1"]\n')
    assert "verify.ignore_rules" in ckptool("verify", "../elsewhere/link.pt", "--json").stderr


def test_each_operand_counts(download, tmp_path, ckptool):
    """Also the model of --like, the source of --against, and the second side of a comparison."""
    mine = save(tmp_path / "mine" / "mine.pt", {"model": drawn()})
    (download / "ckptool.toml").write_text('[verify]\nignore_rules = ["CK1"]\n[diff]\natol = 1.0\n')
    for option in ("--like", "--against"):
        done = ckptool("verify", mine, option, "model.pt#model")
        assert "may not decide on verify.ignore_rules" in done.stderr
    for pair in ((mine, "model.pt"), ("model.pt", mine)):
        assert "may not decide on diff.atol" in ckptool("diff", *pair).stderr


def test_a_name_of_a_directory_cannot_steer_the_terminal(tmp_path, monkeypatch, ckptool):
    folder = tmp_path / "a\x1b[31m"
    save(folder / "model.pt", {"model": drawn()})
    (folder / "ckptool.toml").write_text(LAYOUT)
    monkeypatch.chdir(folder)
    assert "\x1b" not in ckptool("inspect", "model.pt").stderr


@pytest.mark.parametrize("text", ["", "[project]\nname = 'x'\n"])
def test_a_file_without_settings_for_us_is_an_error_where_it_is_asked_for(text, download, ckptool):
    (download / "pyproject.toml").write_text(text)
    done = ckptool("inspect", "model.pt", "--config", "pyproject.toml", "--json")
    assert (done.exit_code, done.json["error"]["code"]) == (2, "config")


@pytest.mark.parametrize(
    "text", ["a" + ".a" * 400_000 + " = 1", "a = " + "[" * 500_000, "a = " + "9" * 900_000]
)
def test_a_file_that_keeps_the_parser_busy_is_an_error(text, download, ckptool):
    (download / "ckptool.toml").write_text(text)
    assert ckptool("inspect", "model.pt").exit_code == 2


def test_pipes_with_the_names_of_neighbours_are_passed_over(download, ckptool):
    for name in ("ckptool.toml", "pyproject.toml", "config.json", "latest", "trainer_state.json"):
        os.mkfifo(download / name)
    for command in ("inspect", "verify"):
        assert "not a regular file" not in ckptool(command, "model.pt", "--json").stderr


def test_a_circle_of_links_is_an_error(download, ckptool):
    (download / "a.pt").symlink_to("b.pt")
    (download / "b.pt").symlink_to("a.pt")
    done = ckptool("inspect", "a.pt", "--json")
    assert (done.exit_code, done.json["error"]["code"]) == (2, "unreadable")


def test_a_missing_file_is_an_error(download, ckptool):
    done = ckptool("inspect", "model.pt", "--config", "none.toml", "--json")
    assert (done.exit_code, json.loads(str(done))["error"]["code"]) == (2, "config")

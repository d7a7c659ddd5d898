"""``--report FORMAT=FILE``: no input, no file that exists, only regular files, whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ckptool.commands import verify
from ckptool.formats import open_checkpoint
from helpers.making import save, weights
from helpers.paths import FIXTURES, contents

GENUINE = FIXTURES / "genuine"


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "last.ckpt", weights())


def assert_refused(done, said):
    assert done.exit_code == 2
    assert done.stdout == ""
    assert said in done.stderr


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("way", ["itself", "hard link", "link", "dotted"])
def test_no_report_replaces_the_checkpoint(way, force, path, tmp_path, ckptool):
    names = {"itself": path, "dotted": tmp_path / "sub" / ".." / "last.ckpt"}
    report = names.get(way, tmp_path / "report.json")
    (tmp_path / "sub").mkdir()
    if way == "hard link":
        report.hardlink_to(path)
    elif way == "link":
        report.symlink_to(path)
    before = contents(tmp_path)
    assert_refused(ckptool("verify", path, "--report", f"json={report}", *force), "input itself")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["--like", "--against"])
def test_what_the_checkpoint_is_compared_with_stays_too(option, path, tmp_path, ckptool):
    other = save(tmp_path / "other.ckpt", weights())
    before = contents(tmp_path)
    done = ckptool("verify", path, option, other, "--report", f"json={other}", "--force")
    assert_refused(done, "input itself")
    assert contents(tmp_path) == before


# Directories that are one checkpoint, copied whole; every file in them is a part, or lies there.
FOLDERS = {
    "a trainer's": GENUINE / "hf_trainer" / "run" / "checkpoint-4",
    "a plan and shards": GENUINE / "torch_dcp" / "checkpoint",
    "ranks": FIXTURES / "sharded" / "ranks" / "columns",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_no_report_replaces_a_part_of_a_directory(name, tmp_path, ckptool):
    folder = shutil.copytree(FOLDERS[name], tmp_path / "checkpoint")
    before = contents(folder)
    with open_checkpoint(folder) as checkpoint:
        parts = [path for path in checkpoint.files if path.is_file()]
    assert parts
    for part in parts:
        done = ckptool("verify", folder, "--report", f"md={part}", "--force")
        assert_refused(done, "input itself")
    assert contents(folder) == before


def test_no_report_replaces_a_shard_of_an_index(path, tmp_path, ckptool):
    output = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", path, "-o", output, "--max-shard-size", "60B").exit_code == 0
    index = tmp_path / "out.safetensors.index.json"
    (shard, *_) = tmp_path.glob("out-00001-of-*.safetensors")
    before = contents(tmp_path)
    for part in (index, shard):
        done = ckptool("verify", index, "--report", f"md={part}", "--force")
        assert_refused(done, "input itself")
    assert contents(tmp_path) == before


def test_no_report_replaces_a_checkpoint_of_a_run(path, tmp_path, ckptool):
    other = save(tmp_path / "other.ckpt", weights())
    before = contents(tmp_path)
    for options in ((), ("--latest-valid",)):
        done = ckptool("verify", tmp_path, *options, "--report", f"json={other}", "--force")
        assert_refused(done, "input itself")
    assert contents(tmp_path) == before


def test_of_what_cannot_be_opened_every_file_of_its_directory_stays(path, tmp_path, ckptool):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    before = contents(tmp_path)
    assert_refused(ckptool("verify", index, "--report", f"md={path}", "--force"), "input itself")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("link", [False, True])
def test_an_existing_file_is_replaced_by_force_alone(link, path, tmp_path, ckptool):
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    report = mine
    if link:
        report = tmp_path / "report.json"
        report.symlink_to(mine)
    command = ("verify", path, "--report", f"json={report}")
    assert_refused(ckptool(*command), "the file exists")
    assert mine.read_text() == "precious"
    mine.chmod(0o600)
    done = ckptool(*command, "--force")
    assert json.loads(mine.read_text())["ok"] == (done.exit_code == 0)
    assert mine.stat().st_mode & 0o777 == 0o600
    assert report.is_symlink() == link


def test_only_regular_files_are_written(path, tmp_path, ckptool):
    """A pipe without a reader would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for odd in (pipe, Path("/dev/null"), tmp_path):
        done = ckptool("verify", path, "--report", f"json={odd}", "--force")
        assert done.exit_code == 2
        assert "regular file" in done.stderr or "a directory" in done.stderr
    assert pipe.is_fifo()


def test_it_is_refused_before_the_work_begins(path, tmp_path, ckptool, monkeypatch):
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    monkeypatch.setattr(verify, "run_checks", None)  # would be a crash
    assert_refused(ckptool("verify", path, "--report", f"md={mine}"), "the file exists")


def test_two_reports_do_not_share_a_file(path, tmp_path, ckptool):
    (tmp_path / "sub").mkdir()
    files = (tmp_path / "out.md", tmp_path / "sub" / ".." / "out.md")
    reports = [word for file in files for word in ("--report", f"md={file}")]
    assert_refused(ckptool("verify", path, *reports), "two reports")
    assert not files[0].exists()


def test_a_file_that_appears_meanwhile_is_kept(path, tmp_path, ckptool, monkeypatch):
    report, real = tmp_path / "out.json", verify.run_checks

    def meanwhile(*args):
        report.write_text("precious")
        return real(*args)

    monkeypatch.setattr(verify, "run_checks", meanwhile)
    assert ckptool("verify", path, "--report", f"json={report}").exit_code == 2
    assert report.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == [path, report]


def test_each_report_is_written(path, tmp_path, ckptool):
    forms = ("json", "md", "junit", "sarif", "code-scanning", "github", "text")
    reports = [word for form in forms for word in ("--report", f"{form}={tmp_path / form}")]
    done = ckptool("verify", path, *reports)
    assert done.exit_code == 0
    assert (tmp_path / "json").read_text() == str(ckptool("verify", path, "--json"))
    assert all((tmp_path / form).read_text() for form in forms)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, *forms])

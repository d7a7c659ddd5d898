"""One path that cannot be read does not end a verification, in any form of the report."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from helpers.making import save, weights

FORMS = ("json", "github", "sarif", "code-scanning", "junit", "md", "text")


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """A path that is not there, a file with NaN, a sound file."""
    broken = {"layer.weight": torch.full((4, 4), float("nan"))}
    return [
        tmp_path / "nope.pt",
        save(tmp_path / "nan.pt", broken),
        save(tmp_path / "sound.pt", weights()),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_others_are_verified_and_the_path_is_in_the_report(form, three, ckptool):
    done = ckptool("verify", *three, "--format", form)
    assert done.exit_code == 2  # something could not be done, whatever the rest was answered
    for path in three:
        assert path.name in done.stdout or form == "code-scanning"
    for told in ("CK120", "no such file", "CK303"):
        assert told in done.stdout


def test_the_error_comes_last_on_stderr(three, ckptool):
    done = ckptool("verify", *three)
    assert "1 of 3 passed" in done.stdout
    assert f"{three[0]}: no such file" in done.stderr


def test_json_has_the_error_in_the_verdict_of_its_path(three, ckptool):
    missing, broken, sound = ckptool("verify", *three, "--json").json
    assert (missing["ok"], broken["ok"], sound["ok"]) == (False, False, True)
    assert missing["error"]["code"] == "unreadable"
    assert "error" not in broken
    assert "error" not in sound


@pytest.mark.parametrize("form", ["junit", "sarif", "md"])
def test_one_path_alone_is_in_documents_that_have_no_errors(form, three, ckptool):
    done = ckptool("verify", three[0], "--format", form)
    assert (done.exit_code, "CK120" in done.stdout) == (2, True)
    if form == "junit":
        assert ET.fromstring(done.stdout).find(".//failure") is not None


def test_one_path_alone_is_an_error_in_json(three, ckptool):
    done = ckptool("verify", three[0], "--json")
    assert (done.exit_code, done.json["schema"]) == (2, "ckptool/error/1")


def test_report_files_are_written_too(three, ckptool, tmp_path):
    ckptool("verify", three[0], "--report", f"json={tmp_path / 'out.json'}")
    assert json.loads((tmp_path / "out.json").read_text())["error"]["message"] == "no such file"


def test_an_unreadable_operand_to_compare_with_is_an_error_of_its_own(three, ckptool):
    done = ckptool("verify", three[2], "--against", three[0], "--json")
    assert (done.exit_code, done.json["error"]["path"]) == (2, str(three[0]))


# ---------------------------------------------------------------------------------------- folders


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_goes_on(tmp_path, ckptool, listless):
    save(tmp_path / "sound.pt", weights())
    listless(tmp_path / "locked")
    file, rest = ckptool("verify", tmp_path, "--json").json
    assert (file["ok"], rest["ok"]) == (True, True)
    (told,) = rest["findings"]
    assert told["rule"] == "CK121"
    assert "locked (permission denied)" in told["message"]


@pytest.fixture
def listless(monkeypatch):
    """Make a folder that nobody may list; root may list any, so the system's answer is made up."""
    import os

    listing = {name: getattr(os, name) for name in ("listdir", "scandir")}
    locked: set[str] = set()

    def refusing(name):
        def look(path="."):
            if not isinstance(path, int) and os.fspath(path) in locked:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return listing[name](path)

        return look

    def make(path: Path) -> None:
        path.mkdir()
        locked.add(str(path))

    for name in listing:
        monkeypatch.setattr(os, name, refusing(name))
    return make


def test_a_run_with_a_cut_checkpoint_below_it_fails(tmp_path, ckptool):
    save(tmp_path / "sound.pt", weights())
    (tmp_path / "old").mkdir()
    cut = save(tmp_path / "old" / "cut.pt", weights())
    cut.write_bytes(cut.read_bytes()[:-40])
    done = ckptool("verify", tmp_path)
    assert done.exit_code == 1
    assert "old/cut.pt" in done.stdout


def test_files_in_a_checkpoint_folder_that_were_not_opened_are_named(tmp_path, ckptool):
    save_sharded(tmp_path)
    (tmp_path / "train.log").write_text("step 1")
    (tmp_path / "vae").mkdir()
    other = save(tmp_path / "vae" / "weights.pt", weights())
    done = ckptool("verify", tmp_path, "--json")
    told = " ".join(f["message"] for f in done.json["findings"] if f["rule"] == "CK121")
    assert (done.exit_code, "train.log" in told, "vae/weights.pt" in told) == (0, True, True)
    other.write_bytes(other.read_bytes()[:-40])
    done = ckptool("verify", tmp_path, "--json")
    assert done.exit_code == 1
    assert any(f["address"].startswith("vae/weights.pt") for f in done.json["findings"])


def save_sharded(folder: Path) -> None:
    """A state dict in one shard, with its index."""
    torch.save(weights(), folder / "model-00001-of-00001.bin")
    index = {"weight_map": dict.fromkeys(weights(), "model-00001-of-00001.bin")}
    (folder / "model.bin.index.json").write_text(json.dumps(index))


@pytest.fixture
def twins(tmp_path) -> tuple[Path, Path]:
    """Two equal folders, each one checkpoint with a file beside it."""
    for name in ("a", "b"):
        (tmp_path / name / "vae").mkdir(parents=True)
        save_sharded(tmp_path / name)
        save(tmp_path / name / "vae" / "weights.pt", weights())
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path / "a", tmp_path / "b"


def test_folders_with_equal_files_are_equal(twins, ckptool):
    assert ckptool("diff", *twins).exit_code == 0


@pytest.mark.parametrize("name", ["vae/weights.pt", "config.json"])
def test_folders_with_a_file_that_differs_are_not_equal(name, twins, ckptool):
    changed = twins[1] / name
    changed.write_bytes(changed.read_bytes()[:-1])
    done = ckptool("diff", *twins, "--json")
    assert (done.exit_code, done.json["equal"]) == (1, False)
    assert [row["address"] for row in done.json["values"]] == [f"__files__/{name}"]


@pytest.mark.parametrize("name", ["vae/weights.pt", "config.json"])
def test_folders_of_which_one_lacks_a_file_are_not_equal(name, twins, ckptool):
    (twins[0] / name).unlink()
    assert ckptool("diff", *twins).exit_code == 1


def test_a_file_that_cannot_be_read_is_not_equal_to_itself(twins, ckptool, listless):
    for folder in twins:
        listless(folder / "locked")
    done = ckptool("diff", *twins, "--json")
    assert (done.exit_code, done.json["equal"]) == (1, False)
    assert "permission denied" in " ".join(done.json["summary"]["not_compared"])


def test_weights_alone_are_compared_without_the_files_beside_them(twins, ckptool):
    (twins[0] / "config.json").write_text("{ }")
    index = "model.bin.index.json"
    assert ckptool("diff", twins[0] / index, twins[1] / index).exit_code == 0
    done = ckptool("diff", *twins, "--ignore", "__files__/*")
    assert done.exit_code == 0


def test_what_lies_beside_the_weights_is_named_against_a_single_file(twins, ckptool):
    done = ckptool("diff", twins[0], twins[0] / "model-00001-of-00001.bin", "--json")
    assert "config.json" in " ".join(done.json["summary"]["not_compared"])
    assert done.exit_code == 1  # the second checkpoint in the folder has no partner

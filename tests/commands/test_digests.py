"""Digests: the same in every container, an operand of diff, and the lines that git compares."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from helpers.making import resumable, weights
from helpers.output import environment


def digests(ckptool, path):
    done = ckptool("inspect", path, "--digests", "--json")
    return {entry["address"]: entry["sha256"] for entry in done.json["entries"]}


def test_a_digest_is_of_type_shape_and_bytes(ckptool, tmp_path):
    tensor = torch.arange(12.0).reshape(4, 3)
    torch.save({"w": tensor}, tmp_path / "a.pt")
    wanted = hashlib.sha256(b"float32 4,3 \n" + tensor.numpy().tobytes()).hexdigest()
    assert digests(ckptool, tmp_path / "a.pt") == {"w": wanted}


def test_digests_are_the_same_in_every_container(ckptool, tmp_path):
    model = weights(grid=torch.arange(12.0).reshape(3, 4).t(), half=torch.ones(3).bfloat16())
    torch.save(model, tmp_path / "a.pt")
    torch.save(model, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    save_file({n: t.contiguous() for n, t in model.items()}, tmp_path / "c.safetensors")
    first, *others = (digests(ckptool, path) for path in sorted(tmp_path.iterdir()))
    assert all(other == first for other in others)
    assert len(set(first.values())) == len(model)


def test_type_and_shape_are_in_the_digest(ckptool, tmp_path):
    zeros = {"a": torch.zeros(4), "b": torch.zeros(2, 2), "c": torch.zeros(4, dtype=torch.int32)}
    torch.save(zeros, tmp_path / "a.pt")
    assert len(set(digests(ckptool, tmp_path / "a.pt").values())) == 3


@pytest.fixture
def manifest(ckptool, tmp_path):
    torch.save({"model": weights(), **resumable(weights())}, tmp_path / "a.pt")
    document = tmp_path / "a.json"
    document.write_text(ckptool("inspect", tmp_path / "a.pt", "--digests", "--json"))
    return document


def test_a_document_of_digests_is_an_operand(ckptool, tmp_path, manifest):
    equal = ckptool("diff", manifest, tmp_path / "a.pt", "--json")
    assert (equal.exit_code, equal.json["equal"]) == (0, True)
    assert "no other values" in equal.json["summary"]["not_compared"][0]
    changed = {"model": weights(), **resumable(weights())}
    changed["model"]["stem.bias"] += 1
    torch.save(changed, tmp_path / "b.pt")
    found = ckptool("diff", tmp_path / "b.pt", manifest, "--json")
    (row,) = found.json["tensors"]
    assert (found.exit_code, row["address"], row["kind"]) == (1, "model/stem.bias", "value")
    assert (row["distance"], row["note"]) == (None, "known by its digest only")


def test_a_part_of_a_document_of_digests(ckptool, tmp_path, manifest):
    save_file(weights(), tmp_path / "w.safetensors")
    assert ckptool("diff", f"{manifest}#model", tmp_path / "w.safetensors").exit_code == 0
    assert ckptool("diff", f"{manifest}#nothing", tmp_path / "w.safetensors").exit_code == 2


def test_a_document_without_digests_is_refused(ckptool, tmp_path, manifest):
    (tmp_path / "plain.json").write_text(ckptool("inspect", tmp_path / "a.pt", "--json"))
    done = ckptool("diff", tmp_path / "plain.json", tmp_path / "a.pt")
    assert (done.exit_code, "--digests" in done.stderr) == (2, True)


def test_textconv_writes_a_line_for_each_tensor_and_value(ckptool, tmp_path):
    torch.save({"w": torch.ones(2, 3), "epoch": 3, "name": "x\x1b"}, tmp_path / "a.pt")
    lines = ckptool("textconv", tmp_path / "a.pt").splitlines()
    assert lines[0].startswith("w: float32 [2, 3] sha256:")
    assert lines[1:] == ["epoch: 3", r"name: 'x\x1b'"]


def test_a_line_of_textconv_changes_with_what_it_cuts_or_folds(ckptool, tmp_path):
    for name, last in (("a.pt", 1), ("b.pt", 2)):
        tree = {"long": "x" * 900 + str(last), "rng": [0] * 624 + [last], "big": 2**300 + last}
        torch.save(tree, tmp_path / name)
    one, other = (ckptool("textconv", tmp_path / name).splitlines() for name in ("a.pt", "b.pt"))
    assert len(one) == len(other) == 3
    assert not set(one) & set(other)


def test_the_help_of_textconv_tells_what_git_needs(ckptool):
    text = ckptool("textconv", "--help")
    assert "*.pt diff=ckptool" in text
    assert "diff.ckptool.textconv" in text


def test_git_diff_shows_the_tensor_that_changed(tmp_path):
    env = environment({"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"})

    def git(*args):
        return subprocess.run(["git", *args], cwd=tmp_path, env=env, check=True,
                              capture_output=True, text=True).stdout  # fmt: skip

    git("init", "-q")
    git("config", "diff.ckptool.textconv", f"{sys.executable} -m ckptool textconv")
    (tmp_path / ".gitattributes").write_text("*.pt diff=ckptool\n")
    torch.save({"a": torch.ones(2), "b": torch.ones(2), "epoch": 1}, tmp_path / "m.pt")
    git("add", ".")
    torch.save({"a": torch.ones(2), "b": torch.zeros(2), "epoch": 2}, tmp_path / "m.pt")
    changed = [
        line for line in git("diff").splitlines() if line[:1] in "+-" and line[1:2] != line[:1]
    ]
    assert [line.split(":")[0] for line in changed] == ["-b", "-epoch", "+b", "+epoch"]

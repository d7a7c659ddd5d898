"""Every checkpoint of ``fixtures/ema`` answers as its row says, and gives the live weights."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ckptool import load_state_dict
from helpers.manifests import assert_holds, assert_shows, is_taken
from helpers.output import run_inside
from helpers.paths import FIXTURES
from helpers.tensors import assert_same_tensor, load_noted

Row = dict[str, Any]

EMA = FIXTURES / "ema"
ROWS: dict[str, Row] = {row["file"]: row for row in json.loads((EMA / "manifest.json").read_text())}

# Where a row says the same in other words than ckptool.
ADDRESSES = {
    "composer/holding.pt": "state/algorithms/0/1/ema_model",  # parameters and buffers together
    "nemo/pair/epoch=2-EMA.ckpt": "optimizer_states/0/ema",  # equal to the averaged state_dict
    "ema_pytorch/posthoc/model.pt": None,
}
MODELS = {
    "ema_pytorch/bare.pt": "",  # the names of the slot carry online_model.
}

UNDECIDABLE = {"asgd", "schedule-free"}  # nothing stored that could be taken
WITHOUT_COMMAND = {"latent_diffusion/collision.ckpt"}

FILES = pytest.mark.parametrize("file", ROWS)


TAKEN = [file for file, row in ROWS.items() if is_taken(row)]
REFUSED = [file for file, row in ROWS.items() if not is_taken(row)]


@cache
def inspected(file: str) -> dict[str, Any]:
    """The report on a file, for all tests that look at it."""
    return run_inside("inspect", EMA / file, "--json").json


@FILES
def test_status_and_main_slot(file):
    found, row = inspected(file)["ema"], ROWS[file]
    assert (found["status"], found["main_slot"]) == (row["status"], row["main_slot"])
    assert (found["selected"] is not None) == is_taken(row)


@FILES
def test_kind_is_told(file):
    found, row = inspected(file)["ema"], ROWS[file]
    kinds = {candidate["kind"].replace("posthoc-", "") for candidate in found["candidates"]}
    assert kinds - {"raw"} == ({row["kind"]} if row["kind"] != "none" else set())


@pytest.mark.parametrize("file", TAKEN)
def test_location(file):
    found, row = inspected(file)["ema"], ROWS[file]
    (selected,) = [c for c in found["candidates"] if c["kind"] != "raw"]
    assert found["selected"] == ADDRESSES.get(file, row["address"])
    assert selected["file"] == (str(EMA / row["ema_file"]) if row["ema_file"] else None)
    assert selected["model"] == MODELS.get(file, row["model"])


@FILES
def test_metadata_is_shown(file):
    report = inspected(file)
    metadata = {key: value for key, value in ROWS[file]["metadata"].items() if "/stds/" not in key}
    assert_shows(report["ema"]["candidates"], metadata)


@pytest.mark.parametrize("file", TAKEN)
def test_extracted_weights_are_the_truth(file, ckptool, tmp_path):
    output = tmp_path / "ema.safetensors"
    done = ckptool("extract-ema", EMA / file, "-o", output, "--json")
    assert done.exit_code == 0, done
    assert_holds(load_noted(output), EMA / ROWS[file]["averaged"])


@pytest.mark.parametrize("file", REFUSED)
def test_everything_else_is_refused(file, ckptool, tmp_path):
    for command in ("extract-ema", "promote-ema"):
        done = ckptool(command, EMA / file, "-o", tmp_path / "ema.pt")
        assert done.exit_code == 2, done
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", TAKEN)
def test_promoted_slot_holds_the_truth(file, ckptool, tmp_path):
    suffix = ".safetensors" if file.endswith(".safetensors") else ".pt"
    output = tmp_path / f"promoted{suffix}"
    done = ckptool("promote-ema", EMA / file, "-o", output, "--json")
    if done.exit_code:
        assert done.exit_code == 2
        assert done.json["error"]["code"] in {"unsupported", "ema-refused"}
        assert list(tmp_path.iterdir()) == []
        return
    if done.json["main_slot"] == "averaged":
        assert output.read_bytes() == (EMA / file).read_bytes()
        return
    slot = load_state_dict(output, "model", model=done.json["model"])  # classes may be missing
    for name, tensor in load_file(EMA / ROWS[file]["averaged"]).items():
        assert_same_tensor(slot[name], tensor.to(slot[name].dtype), name)


@pytest.mark.parametrize("file", [file for file, row in ROWS.items() if row.get("tracks")])
def test_each_track_is_the_truth_when_it_is_named(file, ckptool, tmp_path):
    """By its address, or as the file that it is."""
    for i, (place, truth) in enumerate(ROWS[file]["tracks"].items()):
        output = tmp_path / f"{i}.safetensors"
        is_file = (EMA / place).is_file()
        asked = (EMA / place,) if is_file else (EMA / file, "--ema", place)
        candidates = inspected(file)["ema"]["candidates"]
        assert str(asked[0]) in {c["file"] for c in candidates} or not is_file
        assert ckptool("extract-ema", *asked, "-o", output).exit_code == 0
        assert_holds(load_file(output), EMA / truth)


@pytest.mark.parametrize(
    ("file", "address"),
    [
        ("dino/checkpoint.pth", "teacher"),
        ("lightly/moco_encoder_qk.pt", "state_dict/module.encoder_k.*"),
        ("lightly/moco.pt", "backbone_momentum.*"),
        ("lightly/moco.pt", "projection_head_momentum.*"),
        ("sb3/policy.pth", "actor_target.*"),
        ("sb3/policy.pth", "critic_target.*"),
    ],
)
def test_other_kinds_are_the_truth_when_they_are_named(file, address, ckptool, tmp_path):
    output = tmp_path / "ema.safetensors"
    done = ckptool("extract-ema", EMA / file, "-o", output, "--ema", address, "--json")
    assert done.exit_code == 0, done
    assert done.json["averaged"] > 2
    truth, kept = load_file(EMA / ROWS[file]["averaged"]), done.json["from_model"]
    for name, tensor in load_file(output).items():
        if name not in kept:
            assert_same_tensor(tensor, truth[name], name)


@pytest.mark.parametrize(
    "file", [file for file in REFUSED if ROWS[file]["kind"] not in {"none", *UNDECIDABLE}]
)
def test_the_hint_takes_what_it_names(file, ckptool, tmp_path):
    """Where a person can decide, the refusal ends with the command that does."""
    refused = ckptool("extract-ema", EMA / file, "-o", tmp_path / "x.pt")
    _, _, command = refused.stderr.splitlines()[1].rpartition("ckptool ")
    done = ckptool(*shlex.split(command), "-o", tmp_path / "x.pt")
    assert done.exit_code == (2 if file in WITHOUT_COMMAND else 0), done


def test_every_file_is_small_and_in_the_manifest():
    known = {EMA / row["file"] for row in ROWS.values()}
    known |= {EMA / row["ema_file"] for row in ROWS.values() if row["ema_file"]}
    assert all(path.stat().st_size < 100_000 for path in known)


def test_fixtures_are_left_as_they_are(ckptool, tmp_path):
    """Reading from them leaves nothing behind."""
    before = {path: path.stat().st_mtime_ns for path in Path(EMA).rglob("*")}
    for file in list(ROWS)[:5]:
        ckptool("inspect", EMA / file)
        ckptool("extract-ema", EMA / file, "-o", tmp_path / "x.pt", "--force")
    assert {path: path.stat().st_mtime_ns for path in Path(EMA).rglob("*")} == before

"""ckptool knows its own files: an extracted one is an EMA, a promoted one is not to be resumed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.making import average_of, resumable, weights
from helpers.paths import FIXTURES
from helpers.tensors import assert_same_tensors, load


@pytest.fixture
def path(tmp_path):
    torch.save({"model": weights(), "ema": average_of(weights())}, tmp_path / "last.pt")
    return tmp_path / "last.pt"


@pytest.fixture(params=["out.safetensors", "out.pt", "last.ema.pt"])
def extracted(request, path, ckptool):
    output = path.with_name(request.param)
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    return output


def findings(ckptool, *args) -> dict[str, str]:
    told = ckptool("verify", *args, "--json").json["findings"]
    return {found["rule"]: found["severity"] for found in told}


def test_inspect_says_whose_average_it_is(extracted, ckptool):
    found = ckptool("inspect", extracted, "--json").json["ema"]
    assert (found["status"], found["main_slot"], found["selected"]) == ("found", "averaged", "")
    shown = ckptool("inspect", extracted)
    assert "these weights are the EMA of last.pt, ema (extracted" in shown
    assert "the note that ckptool left" in shown


def test_also_without_its_source(extracted, path, ckptool):
    path.unlink()
    assert ckptool("inspect", extracted, "--json").json["ema"]["main_slot"] == "averaged"
    assert ckptool("verify", extracted, "--require", "ema").exit_code == 0


def test_it_is_extracted_again_as_it_is(extracted, ckptool, tmp_path):
    output = tmp_path / "again.pt"
    assert ckptool("extract-ema", extracted, "-o", output).exit_code == 0
    assert_same_tensors(load(output), average_of(weights()))


def test_shards_are_known_too(path, ckptool, tmp_path):
    (tmp_path / "hub").mkdir()
    args = (path, "-o", tmp_path / "hub", "--max-shard-size", "60B")
    index = ckptool("extract-ema", *args, "--json").json["output"]
    for operand in (index, tmp_path / "hub"):
        assert ckptool("inspect", operand, "--json").json["ema"]["main_slot"] == "averaged"
        assert ckptool("verify", operand, "--require", "ema").exit_code == 0


def test_the_table_of_a_folder_marks_both(path, ckptool, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert ckptool("extract-ema", path, "-o", run / "a.safetensors").exit_code == 0
    assert ckptool("promote-ema", path, "-o", run / "b.pt").exit_code == 0
    shown = ckptool("inspect", run)
    assert "is EMA\n" in shown
    assert "is EMA, promoted\n" in shown
    rows = ckptool("inspect", run, "--json").json["checkpoints"]
    assert {row["made_by"] for row in rows} == {"extract-ema", "promote-ema"}
    assert {row["main_slot"] for row in rows} == {"averaged"}


@pytest.mark.parametrize("place", ["@model", "model"])
def test_raw_weights_that_were_extracted_are_no_ema(place, path, ckptool, tmp_path):
    output = tmp_path / "raw.safetensors"
    assert ckptool("extract-ema", f"{path}#{place}", "-o", output).exit_code == 0
    assert ckptool("inspect", output, "--json").json["ema"]["main_slot"] == "unknown"
    assert ckptool("verify", output, "--require", "ema").exit_code == 1


def test_raw_weights_out_of_a_swapped_file_are_no_ema(ckptool, tmp_path):
    source = FIXTURES / "ema" / "mmengine" / "epoch_3.pth"  # at a place called ema
    output = tmp_path / "raw.safetensors"
    assert ckptool("extract-ema", f"{source}#@model", "-o", output).exit_code == 0
    assert ckptool("inspect", output, "--json").json["ema"]["main_slot"] == "unknown"


# ------------------------------------------------------------------------------- a note is a claim


def with_note_of(extracted, tensors, path):
    """Other tensors under the note of an extracted file."""
    from safetensors import safe_open

    with safe_open(extracted, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def note(path, ckptool, tmp_path):
    output = tmp_path / "noted.safetensors"
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    return output


@pytest.mark.parametrize(
    "forged",
    [weights, lambda: {name: -tensor for name, tensor in weights().items()}],
    ids=["the raw weights", "others"],
)
def test_a_source_beside_it_can_contradict_the_note(forged, note, ckptool, tmp_path):
    path = with_note_of(note, forged(), tmp_path / "forged.safetensors")
    assert findings(ckptool, path)["CK418"] == "warning"
    assert findings(ckptool, path, "--require", "ema")["CK418"] == "error"
    told = ckptool("inspect", path, "--json").json["findings"]
    assert "CK418" in [found["rule"] for found in told]


def test_a_source_that_went_on_does_not(note, path, ckptool):
    torch.save({"model": average_of(weights()), "ema": weights()}, path)
    moved = {n: t * 0.97 if t.is_floating_point() else t for n, t in weights().items()}
    torch.save({"model": moved, "ema": weights()}, path)
    assert "CK418" not in findings(ckptool, note)


@pytest.mark.parametrize(
    "source",
    ["../last.pt", "/etc/passwd", "", ".", "noted.safetensors", "x" * 5000, "a\0b"],
    ids=lambda name: repr(name[:20]),
)
def test_only_a_neighbour_is_looked_at(source, note, ckptool, tmp_path):
    from safetensors import safe_open

    with safe_open(note, "pt") as opened:
        metadata = opened.metadata()
    fields = json.loads(metadata["ckptool"]) | {"source": source}
    save_file(load_file(note), note, metadata | {"ckptool": json.dumps(fields)})
    assert ckptool("inspect", note).exit_code == 0
    assert "CK418" not in findings(ckptool, note)


# -------------------------------------------------------------------------------------- to resume


def run_of(model, **more):
    """All that a resume needs."""
    import random

    import numpy as np

    return {
        "model": model,
        **resumable(model),
        "lr_scheduler": {"last_epoch": 7, "_last_lr": [1e-3], "base_lrs": [1e-3]},
        "np_rng_state": np.random.get_state(),  # noqa: NPY002
        "py_rng_state": random.getstate(),
        **more,
    }


def test_a_promoted_file_is_none_to_resume_from(ckptool, tmp_path):
    path, promoted = tmp_path / "last.pt", tmp_path / "promoted.pt"
    torch.save(run_of(weights(), ema=average_of(weights())), path)
    assert ckptool("promote-ema", path, "-o", promoted).exit_code == 0
    assert "CK419" not in findings(ckptool, path, "--require", "resume")
    assert findings(ckptool, promoted, "--require", "ema,resume")["CK419"] == "error"
    assert "CK419" not in findings(ckptool, promoted, "--require", "ema")


def test_nor_one_that_was_promoted_from_a_file_beside_it(ckptool, tmp_path):
    path, promoted = tmp_path / "last.pt", tmp_path / "elsewhere" / "promoted.pt"
    promoted.parent.mkdir()
    torch.save(run_of(weights()), path)
    torch.save(average_of(weights()), tmp_path / "last_ema.pt")
    assert ckptool("promote-ema", path, "-o", promoted).exit_code == 0
    assert findings(ckptool, promoted, "--require", "resume")["CK419"] == "error"
    assert ckptool("inspect", promoted, "--json").json["ema"]["main_slot"] == "averaged"


def test_nor_one_that_got_one_of_several_averages(ckptool, tmp_path):
    path, promoted = tmp_path / "last.pt", tmp_path / "promoted.pt"
    tracks = {"fast": average_of(weights()), "slow": average_of(average_of(weights()))}
    torch.save(run_of(weights(), ema=tracks), path)
    args = (path, "-o", promoted, "--ema", "ema/slow")
    assert ckptool("promote-ema", *args).exit_code == 0
    assert findings(ckptool, promoted, "--require", "resume")["CK419"] == "error"
    assert ckptool("inspect", promoted, "--json").json["ema"]["main_slot"] != "raw"


@pytest.mark.parametrize(
    "file", ["lightning/weight_averaging.ckpt", "mmengine/epoch_3.pth", "composer/swapped.pt"]
)
def test_a_writer_that_keeps_the_raw_weights_aside_can_resume(file, ckptool):
    told = findings(ckptool, FIXTURES / "ema" / file, "--require", "resume")
    assert "CK419" not in told

"""Samples written by many libraries, whose truth was taken from the training objects."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.paths import ZOO
from helpers.tensors import assert_same_tensors, load

NAMES = (
    "seed_ema_shadow", "seed_ema_state_dict_meta", "seed_has_ema", "lightning_emacallback_seed",
    "timm_v3", "dit", "basicsr", "rtdetr",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A row of the manifest."""

    path: Path
    ema: str
    main: str
    missing: tuple[str, ...]
    averaged: Path  # by the names of the model; only what the average has
    online: Path


def rows() -> dict[str, dict]:
    assert ZOO is not None
    manifest = json.loads((ZOO / "manifest.json").read_text())
    return {row["id"]: row for row in manifest["samples"]}


@pytest.fixture(params=NAMES)
def sample(request, zoo):
    row = rows()[request.param]
    return Sample(
        path=zoo / row["file"],
        ema="/".join(map(str, row["ema_location"])),
        main="/".join(map(str, row["main_location"])),
        missing=tuple(row["model_keys_not_in_ema"]),
        averaged=zoo / row["expected_averaged"],
        online=zoo / row["expected_online"],
    )


def every_id() -> list[str]:
    return sorted(rows()) if ZOO is not None else []


def averaged_model(sample: Sample) -> dict:
    """The online weights with the averages in them."""
    averages = load_file(sample.averaged)
    taken = {name: averages[name] for name in averages if name not in sample.missing}
    return load_file(sample.online) | taken


def test_inspect_finds_it(sample, ckptool):
    found = ckptool("inspect", sample.path, "--json").json["ema"]
    (candidate,) = found["candidates"]
    assert (found["status"], found["main_slot"], found["selected"]) == ("found", "raw", sample.ema)
    assert (candidate["address"], candidate["model"]) == (sample.ema, sample.main)
    assert sorted(candidate["missing"]) == sorted(sample.missing)
    assert candidate["unexpected"] == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_extracted_weights_are_the_live_averages(sample, suffix, ckptool, tmp_path):
    output = tmp_path / f"ema{suffix}"
    report = ckptool("extract-ema", sample.path, "-o", output, "--json").json
    written = load_file(output) if suffix == ".safetensors" else load(output)
    assert_same_tensors(written, averaged_model(sample))
    assert sorted(report["from_model"]) == sorted(sample.missing)


def test_promoted_slot_holds_the_live_averages(sample, ckptool, tmp_path):
    output = tmp_path / "promoted.pt"
    assert ckptool("promote-ema", sample.path, "-o", output).exit_code == 0
    slot = load(output)
    for key in sample.main.split("/"):
        slot = slot[key]
    assert_same_tensors(slot, averaged_model(sample))


def test_a_file_that_declares_no_ema_has_none(zoo, ckptool, tmp_path):
    path = zoo / rows()["seed_has_ema_false"]["file"]
    assert ckptool("inspect", path, "--json").json["ema"]["status"] == "none"
    refused = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert refused.exit_code == 2
    assert "has_ema is False" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", every_id())
def test_the_averages_are_right_or_refused(name, ckptool, tmp_path):
    """Of layouts that are not understood nothing is taken, least of all the wrong weights."""
    row, output = rows()[name], tmp_path / "ema.safetensors"
    done = ckptool("extract-ema", ZOO / row["file"], "-o", output)
    if done.exit_code:
        assert done.exit_code == 2
        assert list(tmp_path.iterdir()) == []
        return
    averages, written = load_file(ZOO / row["expected_averaged"]), load_file(output)
    assert_same_tensors({name: written[name] for name in averages}, averages)


@pytest.mark.parametrize(
    "name",
    ["neg_adamw", "neg_names", "neg_qat_observer", "neg_siamese", "neg_vq_codebook", "yolox"],
)
def test_lookalikes_are_no_ema(name, zoo, ckptool):
    found = ckptool("inspect", zoo / rows()[name]["file"], "--json").json["ema"]
    assert (found["status"], found["candidates"]) == ("none", [])


@pytest.mark.parametrize("name", ["dino", "neg_frozen_teacher"])
def test_a_teacher_is_reported_and_not_taken(name, zoo, ckptool, tmp_path):
    path = zoo / rows()[name]["file"]
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["kind"] == "teacher"
    assert ckptool("extract-ema", path, "-o", tmp_path / "ema.pt").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_hint_takes_the_teacher_when_it_is_typed(zoo, ckptool, tmp_path):
    path, output = zoo / rows()["dino"]["file"], tmp_path / "ema.pt"
    hint = ckptool("extract-ema", path, "-o", output).stderr.splitlines()[1]
    typed = shlex.split(hint.removeprefix("hint: "))[3:]
    assert ckptool("extract-ema", path, "-o", output, *typed).exit_code == 0
    assert_same_tensors(load(output), load_file(zoo / rows()["dino"]["expected_averaged"]))


def test_an_average_that_never_moved_is_told(zoo, ckptool):
    report = ckptool("inspect", zoo / rows()["never_updated"]["file"], "--json").json
    assert [finding["rule"] for finding in report["findings"]] == ["CK404"]

"""Every sample of the zoo answers as its manifest says, and gives the weights that were alive."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from safetensors.torch import load_file

from ckptool import load_state_dict
from ckptool.ema.candidates import EmaLocation
from ckptool.ema.locate import locate_ema
from ckptool.formats import open_checkpoint
from helpers.manifests import assert_holds, assert_shows, slot_at
from helpers.output import run_inside
from helpers.paths import ZOO
from helpers.tensors import assert_same_tensor, load

Row = dict[str, Any]

ROWS: dict[str, Row] = (
    {row["id"]: row for row in json.loads((ZOO / "manifest.json").read_text())["samples"]}
    if ZOO
    else {}
)

# What the manifest expects, by words in its sentence; any other sentence is "found".
STATUS = {
    "nothing to find": "none",
    "NOT EMA": "none",
    "declares no EMA": "none",
    "note:": "none",
    "several tracks": "ambiguous",
    "ambiguous": "ambiguous",
    "AMBIGUOUS": "ambiguous",
}
MAIN_SLOT = {"online": "raw", "averaged": "averaged", "absent": "unknown"}

# The manifest names the container; these are parts of it.
PREFIXES = {
    "denoising_diffusion_style": ("ema_model.",),
    "ema_pytorch_bare": ("ema_model.",),
    "litema_latent_diffusion": ("model_ema.",),
    "litema_name_collision": ("model_ema.",),
    "moco": ("module.encoder_k.",),
    "nequip": ("ema.",),
    "nequip_swapped": ("ema.",),
    "sb3_td3_policy": ("actor_target.", "critic_target."),
}
ASKED_FOR = ("dino", "moco", "sb3_td3_policy", "edm2_state")  # found, and never taken unasked
SWAPPED = ("mmengine_emahook", "nequip_swapped")
NOT_FINITE = "nan_ema"
NOT_PROMOTED = (  # several files, no model in the file, or another copy views the model's bytes
    "diffusers_checkpoint_dir",
    "torch_dcp",
    "torch_swa_bare",
    "denoising_diffusion_style",
)
CLASSES_MISSING = {"stylegan_snapshot"}  # its own code would be needed to load it otherwise
LEFT_OUT = {"nan_ema": 1, "guided_diffusion_files": 3, "nemo_pair": 3}  # not finite; buffers
OTHER_PARTS = {"litema_latent_diffusion": ["first_stage_model.conv.weight"]}  # not in the truth

pytestmark = pytest.mark.skipif(not ROWS, reason="the zoo of samples is not beside this repository")


def status_of(row: Row) -> str:
    return next((status for words, status in STATUS.items() if words in row["expect"]), "found")


def addresses(row: Row) -> list[str]:
    """Where the manifest sees the average, as the command line writes it."""
    if row["ema_location"] is None:
        return []
    container = [str(key) for key in row["ema_location"]]
    return ["/".join([*container, *part]) for part in parts_of(row)]


def parts_of(row: Row) -> list[list[str]]:
    return [[f"{prefix}*"] for prefix in PREFIXES.get(row["id"], ())] or [[]]


def is_taken(row: Row) -> bool:
    return status_of(row) == "found" and row["id"] not in (*ASKED_FOR, NOT_FINITE)


TAKEN = [name for name, row in ROWS.items() if is_taken(row)]


def located(row: Row) -> EmaLocation:
    with open_checkpoint(ZOO / row["file"]) as checkpoint:
        return locate_ema(checkpoint)


@cache
def inspected(name: str) -> dict[str, Any]:
    """The report on a sample, for all tests that look at it."""
    return run_inside("inspect", ZOO / ROWS[name]["file"], "--json").json


def test_all_samples_are_here():
    assert len(ROWS) == 50
    assert len(TAKEN) == 34


@pytest.mark.parametrize("name", ROWS)
def test_status(name):
    found = inspected(name)["ema"]
    assert found["status"] == status_of(ROWS[name])
    assert (found["selected"] is not None) == (is_taken(ROWS[name]) or name == NOT_FINITE)


@pytest.mark.parametrize("name", ROWS)
def test_main_slot(name):
    """Where nothing speaks either way, that is said."""
    found = inspected(name)["ema"]
    known = MAIN_SLOT[ROWS[name]["main_slot_holds"]]
    if not found["candidates"] or name == "never_updated":  # both slots hold the same values
        known = "unknown"
    assert found["main_slot"] == known


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if addresses(row)])
def test_location(name):
    found = inspected(name)["ema"]
    seen = [candidate["address"] for candidate in found["candidates"]]
    assert set(addresses(ROWS[name])) <= set(seen)
    if is_taken(ROWS[name]) and name not in SWAPPED:
        assert [found["selected"]] == addresses(ROWS[name])


@pytest.mark.parametrize("name", SWAPPED)
def test_raw_weights_in_a_slot_called_ema_are_named_so_and_not_selected(name):
    found = inspected(name)
    kinds = {candidate["address"]: candidate["kind"] for candidate in found["ema"]["candidates"]}
    (raw,) = addresses(ROWS[name])
    assert kinds[raw] == "raw"
    assert found["ema"]["selected"] == "/".join(ROWS[name]["main_location"])
    assert "CK406" in [finding["rule"] for finding in found["findings"]]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row["name_map"]])
def test_names_pair(name):
    row, location = ROWS[name], located(ROWS[name])
    wanted = set(addresses(row))
    pairs = {
        c.table.prefix + theirs: ours
        for c in location.candidates
        if c.address in wanted and c.alignment
        for ours, theirs in c.alignment.pairs.items()
    }
    if row["main_slot_holds"] == "absent":
        assert [c.alignment for c in location.candidates] == [None]
    else:
        left_out = set(pairs) - set(row["name_map"])  # what the manifest leaves open
        assert len(left_out) == LEFT_OUT.get(name, 0)
        assert {key: pairs[key] for key in pairs if key not in left_out} == row["name_map"]


@pytest.mark.parametrize("name", ROWS)
def test_metadata_is_shown(name):
    report = inspected(name)
    assert_shows(report["ema"]["candidates"], ROWS[name]["metadata"])


def test_tracks_are_told_apart_by_their_widths(zoo, ckptool):
    found = ckptool("inspect", zoo / ROWS["edm2_state"]["file"], "--json").json["ema"]
    assert [c["meta"] for c in found["candidates"]] == [{"std": 0.05}, {"std": 0.1}]


@pytest.mark.parametrize("name", TAKEN)
def test_extracted_weights_are_the_truth(name, ckptool, tmp_path):
    output = tmp_path / "ema.safetensors"
    done = ckptool("extract-ema", ZOO / ROWS[name]["file"], "-o", output, "--json")
    assert done.exit_code == 0, done
    truth = ZOO / ROWS[name]["expected_averaged"]
    assert_holds(load_file(output), truth, OTHER_PARTS.get(name, ()))
    assert set(OTHER_PARTS.get(name, ())) <= set(done.json["from_model"])


@pytest.mark.parametrize("name", [name for name in ROWS if name not in TAKEN])
def test_everything_else_is_refused(name, ckptool, tmp_path):
    output = tmp_path / "ema.safetensors"
    for command in ("extract-ema", "promote-ema"):
        done = ckptool(command, ZOO / ROWS[name]["file"], "-o", output)
        assert done.exit_code == 2, done
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("neg_")])
def test_lookalikes_have_no_selected_candidate(name):
    found = inspected(name)["ema"]
    assert found["selected"] is None
    assert "ema" not in [candidate["kind"] for candidate in found["candidates"]]


@pytest.mark.parametrize("name", ASKED_FOR)
def test_asked_for_by_address_it_is_the_truth(name, ckptool, tmp_path):
    truth, written = load_file(ZOO / ROWS[name]["expected_averaged"]), {}
    for i, address in enumerate(addresses(ROWS[name])):
        output = tmp_path / f"{i}.safetensors"
        done = ckptool(
            "extract-ema", ZOO / ROWS[name]["file"], "-o", output, "--ema", address, "--json"
        )
        assert done.exit_code == 0, done
        kept = done.json["from_model"]
        written |= {n: t for n, t in load_file(output).items() if n not in kept}
    for key in written:
        assert_same_tensor(written[key], truth[key], key)
    assert set(ROWS[name]["name_map"].values()) <= set(written)


def test_what_is_not_finite_is_written_only_by_force(zoo, ckptool, tmp_path):
    path, output = zoo / ROWS[NOT_FINITE]["file"], tmp_path / "ema.safetensors"
    refused = ckptool("extract-ema", path, "-o", output)
    assert "non-finite" in refused.stderr
    assert ckptool("extract-ema", path, "-o", output, "--force").exit_code == 0
    truth = zoo / ROWS[NOT_FINITE]["expected_averaged"]  # without the tensor that is not finite
    written = load_file(output)
    assert len(set(written) - set(load_file(truth))) == 1
    assert_holds(written, truth, written)


@pytest.mark.parametrize("name", TAKEN)
def test_promoted_slot_holds_the_truth(name, ckptool, tmp_path):
    path, output = ZOO / ROWS[name]["file"], tmp_path / "promoted.pt"
    done = ckptool("promote-ema", path, "-o", output, "--json")
    if done.exit_code:
        assert done.exit_code == 2
        assert done.json["error"]["code"] in {"unsupported", "ema-refused"}
        assert list(tmp_path.iterdir()) == []
        assert name in NOT_PROMOTED
        return
    assert name not in NOT_PROMOTED
    if done.json["main_slot"] == "averaged":
        assert output.read_bytes() == path.read_bytes()
        return
    if name in CLASSES_MISSING:
        slot = load_state_dict(output, "model", model=done.json["model"])
    else:
        slot = slot_at(load(output), done.json["model"])
    for key, tensor in load_file(ZOO / ROWS[name]["expected_averaged"]).items():
        assert_same_tensor(slot[key], tensor.to(slot[key].dtype), key)

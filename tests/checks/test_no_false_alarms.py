"""Genuine checkpoints raise no alarm, by default or when everything is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptool.commands.verify import Request, chosen_rules, verify_file
from ckptool.ema.layouts import LAYOUTS
from helpers.paths import FIXTURES, ZOO

# True alarms, by file: what is wrong with it is what it was made for.
TRUE = {
    "latent_diffusion/collision.ckpt": {"CK402"},  # names that cannot be told apart
    "lookalikes/frozen_teacher.pt": {"CK405"},
    "litema_name_collision": {"CK402"},
    "stylegan/network-snapshot-000012.pkl": {"CK201"},  # it holds source code, which loading runs
    "neg_frozen_teacher": {"CK405"},
    "nan_ema": {"CK303"},
    "never_updated": {"CK404", "CK411"},
    # Averages of parameters whose batch statistics nobody copies.
    "basicsr/net_g_12.pth": {"CK416"},
    "diffusers/checkpoint-12/unet/diffusion_pytorch_model.safetensors": {"CK416"},
    "dit/0000012.pt": {"CK416"},
    "lightning/swa_not_yet.ckpt": {"CK417"},
    "lightning/swa.ckpt": {"CK416"},  # Lightning computes them anew at the end
}
SWAPPED = {
    "CK406"
}  # by the habit of the library: the slots are exchanged, which is worth a warning
YOUNG = {"CK407"}  # runs of a few steps: what a decay of 0.8 or 0.9 leaves of the initial weights

WARMING_UP = {row.name for row in LAYOUTS if row.decay_varies}

FULL = {"bytes": True, "values": True}


def fixture_rows() -> dict[str, Path]:
    rows = json.loads((FIXTURES / "ema" / "manifest.json").read_text())
    found = {row["file"]: FIXTURES / "ema" / row["file"] for row in rows}
    return found | {p.name: p for p in (FIXTURES / "resume").glob("*.pth")}


def zoo_rows() -> dict[str, Path]:
    if ZOO is None:
        return {}
    rows = json.loads((ZOO / "manifest.json").read_text())["samples"]
    return {row["id"]: ZOO / row["file"] for row in rows}


ROWS = fixture_rows() | zoo_rows()


def alarms(path: Path, options: dict[str, bool]) -> set[str]:
    report = verify_file(path, Request(chosen_rules(options)))
    assert report.format is not None
    return {found.rule for found in report.findings if found.severity != "info"}


def allowed(name: str) -> set[str]:
    known = TRUE.get(name, set())
    swaps = "swapped" in name or "mmengine" in name or "mmcv" in name
    return known | YOUNG | (SWAPPED if swaps else set())


@pytest.mark.parametrize("name", ROWS)
def test_by_default(name):
    found = alarms(ROWS[name], {})
    assert found <= allowed(name)
    assert found >= TRUE.get(name, set())


# What only full reading shows: layers that were made zero or one, and the NaN itself.
TRUE_IN_FULL = {
    "fairseq/data2vec.pt": {"CK305"},
    "litema_latent_diffusion": {"CK304"},
    "moco": {"CK304"},
    "nan_ema": {"CK301"},
}


@pytest.mark.parametrize("name", ROWS)
def test_with_every_byte_and_value(name):
    more = TRUE_IN_FULL.get(name, set())
    found = alarms(ROWS[name], FULL)
    assert more <= found <= allowed(name) | more


def test_the_young_are_young(ckptool):
    """The warning that is allowed everywhere is true where it is given."""
    for name, path in ROWS.items():
        report = ckptool("inspect", path, "--json").json
        warned = any(f["rule"] == "CK407" for f in report["findings"])
        young = [
            c["meta"]["decay"] ** updates > 0.05
            for c in report["ema"]["candidates"]
            if c["meta"].get("decay") and c["kind"] != "raw"
            if (updates := c["meta"].get("num_updates") or c["meta"].get("n_averaged"))
            if c["layout"] not in WARMING_UP
        ]
        assert warned == any(young), name

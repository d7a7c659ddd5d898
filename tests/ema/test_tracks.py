"""Averages that are stored a parameter at a time, in nested dicts, flat names or a DCP folder."""

from __future__ import annotations

import shlex

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckptool.ema.locate import locate_ema
from helpers.tensors import assert_same_tensors, load
from helpers.twins import drawn, in_memory, near, save, under

MODEL = drawn()
FAST, SLOW = near(MODEL, 1), near(MODEL, 2)


def nested(*tracks: str) -> dict:
    averages = dict(zip(tracks, (FAST, SLOW), strict=False))
    state = {
        name: {"ema_params": {track: average[name] for track, average in averages.items()}}
        for name in MODEL
    }
    return {"model": MODEL, "ema": {"state": state}}


def flat(*tracks: str) -> dict:
    averages = zip(tracks, (FAST, SLOW), strict=False)
    parts = [
        {f"ema.state.{name}.ema_params.{track}": tensor for name, tensor in average.items()}
        for track, average in averages
    ]
    return under("model.", MODEL) | {name: t for part in parts for name, t in part.items()}


FORMS = {
    "nested": (nested, "ema/state/*/ema_params/fast", MODEL),
    "flat": (flat, "ema.*.ema_params.fast", under("model.", MODEL)),
}
every_form = pytest.mark.parametrize("form", FORMS)


def to_file(content, folder):
    return save(folder / "last.pt", content)


def to_folder(content, folder):
    dcp.save(content, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


every_writer = pytest.mark.parametrize("write", [to_file, to_folder])


@every_form
@every_writer
def test_several_are_listed_and_none_is_taken(form, write, ckptool, tmp_path):
    make, address, _ = FORMS[form]
    path = write(make("fast", "slow"), tmp_path)
    found = ckptool("inspect", path, "--json").json["ema"]
    places = [candidate["address"] for candidate in found["candidates"]]
    assert (found["status"], places) == ("ambiguous", [address, address.replace("fast", "slow")])
    assert ckptool("extract-ema", path, "-o", tmp_path / "out.pt").exit_code == 2


@every_form
@every_writer
def test_the_hint_takes_the_first(form, write, ckptool, tmp_path):
    make, _, model = FORMS[form]
    path, output = write(make("fast", "slow"), tmp_path), tmp_path / "out.pt"
    hint = ckptool("extract-ema", path, "-o", output).stderr.splitlines()[1]
    typed = shlex.split(hint.removeprefix("hint: ckptool extract-ema "))
    assert ckptool("extract-ema", *typed, "-o", output).exit_code == 0
    wanted = under("model.", FAST) if "model.stem.bias" in model else FAST
    assert_same_tensors(load(output), wanted)


@every_form
def test_the_place_is_an_operand(form, ckptool, tmp_path):
    make, address, _ = FORMS[form]
    path = to_file(make("fast", "slow"), tmp_path)
    output = tmp_path / "out.pt"
    assert ckptool("extract-ema", f"{path}#{address}", "-o", output).exit_code == 0
    compared = ckptool("diff", f"{path}#{address}", f"{path}#{address}", "--json").json
    assert compared["equal"]
    assert compared["summary"]["tensors"]["compared"] == len(MODEL)
    assert ckptool("verify", output, "--against", f"{path}#{address}").exit_code == 0


@every_form
def test_one_alone_is_taken(form, ckptool, tmp_path):
    make, address, _ = FORMS[form]
    path, output = to_file(make("fast"), tmp_path), tmp_path / "out.pt"
    done = ckptool("extract-ema", path, "-o", output, "--json").json
    assert (done["ema"], done["averaged"]) == (address, len(MODEL))


@every_form
def test_the_model_is_without_them(form, ckptool, tmp_path):
    make, _, model = FORMS[form]
    path, output = to_file(make("fast", "slow"), tmp_path), tmp_path / "out.pt"
    assert ckptool("extract-ema", f"{path}#@model", "-o", output).exit_code == 0
    assert_same_tensors(load(output), model)


def test_one_of_several_is_promoted(ckptool, tmp_path):
    path, output = to_file(nested("fast", "slow"), tmp_path), tmp_path / "promoted.pt"
    args = (path, "-o", output, "--ema", "ema/state/*/ema_params/slow")
    assert ckptool("promote-ema", *args).exit_code == 0
    assert_same_tensors(load(output)["model"], SLOW)


@pytest.mark.parametrize(
    "place",
    ["ema/state/*/ema_params/medium", "ema/*x*/a", "ema/state/*/", "none/*/a", "*/", "*//*"],
)
def test_places_that_are_none(place, ckptool, tmp_path):
    path = to_file(nested("fast"), tmp_path)
    for command in (
        ("extract-ema", path, "--ema", place, "--dry-run"),
        ("diff", f"{path}#{place}", path),
    ):
        assert ckptool(*command).exit_code == 2


def test_networks_of_a_few_tensors_are_not_turned_round():
    nets = {name: near(MODEL, seed) for seed, name in enumerate("abc")}
    content = {"model": MODEL, "ema": nets}
    assert [c.address for c in locate_ema(in_memory(content)).candidates] == [
        "ema/a",
        "ema/b",
        "ema/c",
    ]


def test_names_of_the_model_that_end_otherwise_are_kept_together():
    """A layer's own parameters behind a parameter's name are no tracks."""
    model = {f"{i}.weight.{part}": torch.randn(3, 2) for i in range(4) for part in ("g", "v")}
    (candidate,) = locate_ema(in_memory({"model": model, "ema": near(model)})).candidates
    assert candidate.address == "ema"
    assert len(candidate.alignment.pairs) == len(model)

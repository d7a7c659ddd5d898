"""What ``--dry-run`` says is what is then done: in text, in JSON, and in what torch finds."""

from __future__ import annotations

import re

import pytest
import torch

from helpers.kinds import noise
from helpers.likeness import assert_same_objects
from helpers.making import average_of, floats_to, resumable, save, weights
from helpers.tensors import load


@pytest.fixture
def path(tmp_path):
    """Casts of two kinds, ties, buffers without averages, an average without a model's tensor."""
    shared = noise(6, 4).bfloat16()
    model = floats_to(weights(), torch.bfloat16) | {
        "embed.weight": shared, "decoder.weight": shared,
        "norm.running_mean": noise(4), "norm.num_batches_tracked": torch.tensor(3),
    }  # fmt: skip
    average = average_of(weights()) | {"embed.weight": noise(6, 4, seed=3), "extra": noise(2)}
    average["decoder.weight"] = average["embed.weight"]
    average["head.weight"] = average["head.weight"].double()
    more = {"best": {"embed": shared[2:]}, **resumable(model)}
    return save(tmp_path / "last.pt", model, average, **more)


def changed_names(before, after) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


ALLOWED = ("--ema", "ema_state_dict", "--model", "state_dict", "--allow-shared")


def test_the_plan_counts_what_torch_finds(path, ckptool, tmp_path):
    plan = ckptool("promote-ema", path, "-o", tmp_path / "o.pt", "--dry-run", "--json", *ALLOWED)
    plan, content = plan.json, load(path)
    model, average = content["state_dict"], content["ema_state_dict"]
    both = [name for name in model if name in average]
    kinds = [(average[name].dtype, model[name].dtype) for name in both]
    casts = [f"{str(a)[6:]} to {str(b)[6:]}" for a, b in kinds if a is not b]
    assert (plan["ema"], plan["model"]) == ("ema_state_dict", "state_dict")
    assert plan["tensors"] == len(both)
    assert plan["casts"] == {cast: casts.count(cast) for cast in casts}
    assert plan["kept"] == [name for name in model if name not in average]
    assert plan["dropped"] == ["extra"]
    assert plan["shared"] == ["best/embed"]
    assert plan["optimizers"] == ["optimizer"]
    storages = {model[name].untyped_storage().data_ptr(): model[name].nbytes for name in both}
    assert plan["bytes"] == sum(storages.values())


def test_what_is_planned_is_done(path, ckptool, tmp_path):
    output = tmp_path / "out.pt"
    args = ("promote-ema", path, "-o", output, *ALLOWED)
    plan = ckptool(*args, "--dry-run", "--json").json
    assert list(tmp_path.iterdir()) == [path]
    done = ckptool(*args, "--json").json
    assert done == plan | {"written": True}
    before, after = load(path), load(output)
    stays = set(before["state_dict"]) - changed_names(before["state_dict"], after["state_dict"])
    assert stays == {*plan["kept"], "steps"}  # the counter is the same in the average
    assert changed_names(before["best"], after["best"]) == {"embed"}
    for part in (before, after):
        del part["state_dict"], part["best"]
    assert_same_objects(after, before)


def test_the_text_is_the_same_but_for_its_first_word_and_the_next_step(path, ckptool, tmp_path):
    args = ("promote-ema", path, "-o", tmp_path / "out.pt", *ALLOWED)
    plan, done = ckptool(*args, "--dry-run"), ckptool(*args)
    assert plan.startswith("would write ")
    same, _, step = done.partition("\nNext: ")
    assert plan.replace("would write", "wrote", 1) == same
    assert step.startswith("ckptool verify ")


def test_what_is_planned_for_the_file_itself_is_done(path, ckptool, tmp_path):
    """Which file will be replaced, and under which name it stays."""
    args = ("promote-ema", path, "--in-place", "--backup", *ALLOWED)
    plan, text = ckptool(*args, "--dry-run", "--json").json, ckptool(*args, "--dry-run")
    assert list(tmp_path.iterdir()) == [path]
    assert text.startswith(f"would replace {path} ")
    assert re.search(r"backup +\S+last\.pt\.bak", text)
    done = ckptool(*args, "--json").json
    assert done == plan | {"written": True}
    assert done["backup"] == f"{path}.bak"


def test_the_text_says_what_the_json_says(path, ckptool, tmp_path):
    args = ("promote-ema", path, "-o", tmp_path / "out.pt", "--dry-run", *ALLOWED)
    text, plan = re.sub(r"\s+", " ", ckptool(*args)), ckptool(*args, "--json").json
    assert f"replaces {plan['tensors']} tensors, {plan['bytes']} B at {plan['model']}" in text
    assert f"with {plan['ema']}" in text
    assert f"kept {len(plan['kept'])} that the EMA lacks: {', '.join(plan['kept'])}" in text
    assert "left out 1: extra" in text
    for cast, count in plan["casts"].items():
        assert re.search(rf"cast {count} tensors? from {cast}", text)
    assert "shared 1 elsewhere change too: best/embed" in text
    assert "optimizer optimizer belongs to the raw weights" in text


def test_what_would_be_refused_is_refused_by_the_plan(path, ckptool, tmp_path):
    """With the same words, and nothing is written either way."""
    args = ("promote-ema", path, "-o", tmp_path / "out.pt", "--json")
    named = ("--ema", "ema_state_dict", "--model", "state_dict")
    plan, done = ckptool(*args, *named, "--dry-run"), ckptool(*args, *named)
    assert (plan.exit_code, plan.json) == (done.exit_code, done.json) == (2, plan.json)
    said = "1 tensor elsewhere views the bytes that would change: best/embed"
    assert said in plan.json["error"]["message"]
    assert "--allow-shared" in plan.json["error"]["hint"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["-o", "--in-place"])
def test_the_plan_for_a_slot_that_is_averaged_already(where, path, ckptool, tmp_path):
    first = tmp_path / "first.pt"
    ckptool("promote-ema", path, "-o", first, *ALLOWED)
    target = (where, tmp_path / "out.pt") if where == "-o" else (where,)
    plan = ckptool("promote-ema", first, *target, "--dry-run")
    done = ckptool("promote-ema", first, *target)
    verb = "would write" if where == "-o" else "unchanged:"
    assert plan.startswith(f"{verb} ")
    assert done.partition("\nNext: ")[0] == plan.replace("would write", "wrote", 1)
    assert "already holds the EMA weights" in done

"""Where averages are found and what is said of them; every row of ``LAYOUTS`` has an example."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

import pytest
import torch

from ckptool.ema.layouts import LAYOUTS
from helpers.making import average_of, save, weights
from helpers.paths import FIXTURES
from helpers.tensors import assert_same_tensors, load, load_noted, truth

EMA = FIXTURES / "ema"


# (name, pattern of the address) of each row -> a checkpoint of its writer.
EXAMPLES = {
    tuple(row["layout"]): row["file"]
    for row in json.loads((EMA / "manifest.json").read_text())
    if row["layout"]
}


every_row = pytest.mark.parametrize("row", LAYOUTS, ids=lambda row: f"{row.name} {row.ema_at}")


@pytest.fixture
def example(row):
    key = row.name, row.ema_at
    assert key in EXAMPLES, (
        "a layout needs a checkpoint of its library in fixtures/ema/manifest.json"
    )
    return EMA / EXAMPLES[key]


def test_there_are_no_examples_of_rows_that_are_gone():
    assert set(EXAMPLES) == {(row.name, row.ema_at) for row in LAYOUTS}


@every_row
def test_a_layout_is_named_in_the_file_that_it_describes(row, example, ckptool):
    found = ckptool("inspect", example, "--json").json["ema"]
    named = [c for c in found["candidates"] if c["layout"] == row.name]
    assert named, found
    assert {candidate["library"] for candidate in named} == {row.library}
    holds = "averaged" if row.swapped or row.in_main_slot else "raw"
    assert found["main_slot"] == ("unknown" if row.doubt else holds)
    if not row.swapped:
        assert any(fnmatchcase(candidate["address"], row.ema_at) for candidate in named)


@every_row
def test_a_layout_gives_the_live_averages_or_says_why_not(row, example, ckptool, tmp_path):
    output = tmp_path / "ema.safetensors"
    done = ckptool("extract-ema", example, "-o", output)
    asked = {"edm2", "dino", "moco", "stable-baselines3"}
    taken_unasked = row.name not in asked and not row.doubt
    assert done.exit_code == (0 if taken_unasked else 2), done.stderr
    if not taken_unasked:
        assert "--ema" in done.stderr
        return
    wanted, found = truth(example, "averaged"), load_noted(output)
    assert_same_tensors({name: found[name] for name in wanted}, wanted)


@pytest.mark.parametrize("row", [row for row in LAYOUTS if row.swapped], ids=lambda row: row.name)
def test_swapped_layouts_give_no_raw_weights(row, example, ckptool, tmp_path):
    report = ckptool("inspect", example, "--json").json
    assert "CK406" in [finding["rule"] for finding in report["findings"]]
    raw = [c["address"] for c in report["ema"]["candidates"] if c["kind"] == "raw"]
    extracted = ckptool("extract-ema", example, "-o", tmp_path / "e.pt", "--json").json
    assert extracted["ema"] not in raw


# ------------------------------------------------------------------------------------------ markers


@pytest.mark.parametrize("slot", ["semantic_head", "schema", "cinema", "remap"])
def test_a_second_network_is_no_average(slot, ckptool, tmp_path):
    path = tmp_path / "two.pt"
    torch.save({"state_dict": weights(), slot: average_of(weights())}, path)
    assert ckptool("inspect", path, "--json").json["ema"]["candidates"] == []


def test_a_marked_place_that_fits_no_model_is_no_candidate(ckptool, tmp_path):
    loss = {f"meter{i}": torch.ones(1) for i in range(5)}
    path = tmp_path / "meters.pt"
    torch.save({"state_dict": weights(), "ema_stats": loss}, path)
    assert ckptool("inspect", path, "--json").json["ema"]["status"] == "none"


def test_moments_of_an_optimizer_are_no_averages(ckptool, tmp_path):
    """``exp_avg`` has a marker in its name."""
    state = {i: {"exp_avg": t * 0.9, "exp_avg_sq": t**2} for i, t in enumerate(weights().values())}
    groups = [{"params": list(state), "lr": 1.0}]
    path = tmp_path / "adam.pt"
    torch.save({"model": weights(), "optimizer": {"state": state, "param_groups": groups}}, path)
    assert ckptool("inspect", path, "--json").json["ema"]["candidates"] == []


# ---------------------------------------------------------------------------------------- the model


def test_the_model_is_where_loaders_look_first(ckptool, tmp_path):
    path = tmp_path / "slots.pt"
    content = {"params": weights(), "model": weights(), "state_dict": weights()}
    torch.save(content | {"ema_state_dict": average_of(weights())}, path)
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["model"] == "state_dict"


def test_any_key_will_do_when_none_is_usual(ckptool, tmp_path):
    path = tmp_path / "own.pt"
    torch.save({"my_network": weights(), "my_network_ema": average_of(weights())}, path)
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert (candidate["model"], candidate["address"]) == ("my_network", "my_network_ema")


def test_a_pickled_module_is_a_model_like_a_state_dict(ckptool, tmp_path):
    net, averaged = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    averaged.load_state_dict({n: t * 0.9 for n, t in net.state_dict().items()})
    torch.save({"model": net, "ema": averaged}, tmp_path / "modules.pt")
    output = tmp_path / "ema.pt"
    assert ckptool("extract-ema", tmp_path / "modules.pt", "-o", output).exit_code == 0
    assert_same_tensors(load(output), averaged.state_dict())


# ------------------------------------------------------------------------------------- what is said


def test_metadata_is_what_stands_beside_the_average(ckptool, tmp_path):
    ema = {"module": average_of(weights()), "updates": torch.tensor(500), "decay": 0.999}
    path = tmp_path / "meta.pt"
    torch.save({"model": weights(), "ema": ema, "epoch": 3, "decay": 0.1}, path)
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["meta"] == {"updates": 500, "decay": 0.999}


def test_nothing_is_made_up(ckptool, tmp_path):
    path = save(tmp_path / "plain.pt", weights())
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["meta"] == {}
    assert "decay unknown" in ckptool("inspect", path)


@pytest.mark.parametrize(
    ("flag", "change", "main_slot"),
    [(True, 0.0, "averaged"), (False, 0.0, "unknown"), (True, 1e-3, "raw"), (False, 1e-3, "raw")],
)
def test_promotion_is_told_by_value_and_flag_together(flag, change, main_slot, ckptool, tmp_path):
    model = weights()
    shadow = {n: t + change if t.is_floating_point() else t.clone() for n, t in model.items()}
    path = tmp_path / "last.pt"  # a marker in the file's name would count too
    torch.save({"state_dict": model, "ema_shadow": shadow, "using_ema": flag}, path)
    assert ckptool("inspect", path, "--json").json["ema"]["main_slot"] == main_slot


def promoted_to_narrow(folder, ckptool):
    """A bfloat16 model that got its float32 average; both are still there."""
    model = {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights().items()}
    output = folder / "out.pt"
    path = save(folder / "last.pt", model, average_of(weights()))
    assert ckptool("promote-ema", path, "-o", output).exit_code == 0
    return output


def test_the_table_that_is_named_is_taken_from_a_promoted_file_too(ckptool, tmp_path):
    """And not what became of it in the model's narrower type."""
    path, output = promoted_to_narrow(tmp_path, ckptool), tmp_path / "ema.pt"
    assert ckptool("extract-ema", path, "-o", output, "--ema", "ema_state_dict").exit_code == 0
    assert_same_tensors(load(output), average_of(weights()))


def test_what_agrees_in_a_sample_only_is_taken_when_it_is_named(ckptool, tmp_path):
    """As the hint of the refusal says."""
    model = {f"{i}.weight": torch.arange(5000.0) + i for i in range(4)}
    ema = {n: torch.cat([t[:4000], t[4000:] * 0.9]) for n, t in model.items()}
    path, output = save(tmp_path / "last_ema.pt", model, ema), tmp_path / "out.pt"
    refused = ckptool("extract-ema", path, "-o", output, "--json")
    assert "--ema ADDRESS" in refused.json["error"]["hint"]
    for command in ("extract-ema", "promote-ema"):
        args = (command, path, "-o", output, "--force", "--ema", "ema_state_dict")
        assert ckptool(*args).exit_code == 0
        content = load(output)
        assert_same_tensors(content.get("state_dict", content), ema)


def test_one_differing_tensor_is_enough_to_be_raw(ckptool, tmp_path):
    model = weights()
    shadow = {n: t.clone() for n, t in model.items()} | {"scale": model["scale"] + 1}
    path = tmp_path / "last.pt"
    torch.save({"state_dict": model, "ema_shadow": shadow, "using_ema": True}, path)
    assert ckptool("inspect", path, "--json").json["ema"]["main_slot"] == "raw"


def test_equal_bytes_under_two_addresses_are_one_candidate(ckptool, tmp_path):
    average = average_of(weights())
    views = {name: tensor.view_as(tensor) for name, tensor in average.items()}
    path = save(tmp_path / "views.pt", weights(), average, callbacks={"EMA": {"weights": views}})
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["address"] == "ema_state_dict"
    assert candidate["aliases"] == ["callbacks/EMA/weights"]


def test_why_names_the_word_and_the_coverage(ckptool, tmp_path):
    path = save(tmp_path / "plain.pt", weights())
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert "'ema'" in candidate["why"]
    assert "5 of the model's 5 tensors" in candidate["why"]

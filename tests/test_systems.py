"""Five training systems: their checkpoints through every command, and into their own code."""

from __future__ import annotations

import pytest
import torch

import ckptool as library
from ckptool.errors import EmaNotFoundError
from helpers.likeness import assert_same_objects
from helpers.paths import FIXTURES
from helpers.systems import SYSTEMS, load_script, outputs
from helpers.tensors import assert_same_tensors, load, load_noted, storage_of, truth

EMACALLBACK = FIXTURES / "ema" / "emacallback"
HAS_EMA = FIXTURES / "ema" / "has_ema"
EMA_SHADOW = FIXTURES / "ema" / "ema_shadow"
RESUME = FIXTURES / "resume"
LAST = RESUME / "checkpoint_e150_lr1e-4_bs2_acc4_qpe2.pth"
BEST = RESUME / "checkpoint_best_pck_e146_pck0.4125_valloss0.4342.pth"
DORA = FIXTURES / "dora"

WITHOUT_EMA = (
    HAS_EMA / "none.pt", HAS_EMA / "old.pt", LAST, BEST, DORA / "adapter.pth", DORA / "base.pth",
)  # fmt: skip


@pytest.fixture(params=SYSTEMS, ids=str)
def system(request):
    return request.param


def extracted(ckptool, system, output):
    assert ckptool("extract-ema", system.path, "-o", output).exit_code == 0
    return load_noted(output) if output.suffix == ".safetensors" else torch.load(output)


def promoted(ckptool, system, output):
    assert ckptool("promote-ema", system.path, "-o", output).exit_code == 0
    return load(output)


# ---------------------------------------------------------------------------- those with an average


def test_inspect_says_where_the_average_is(system, ckptool):
    found = ckptool("inspect", system.path, "--json").json["ema"]
    (candidate,) = found["candidates"]
    assert (found["status"], found["main_slot"], found["selected"]) == ("found", "raw", system.ema)
    assert (candidate["address"], candidate["model"]) == (system.ema, system.model)
    assert candidate["layout"] == system.layout
    assert candidate["aliases"] == list(system.aliases)


def test_inspect_counts_what_the_average_covers(system, ckptool):
    (candidate,) = ckptool("inspect", system.path, "--json").json["ema"]["candidates"]
    stored = load(system.path)
    for key in system.ema.split("/"):
        stored = stored[key]
    assert candidate["tensors"] == len(stored)
    assert candidate["unexpected"] == []
    assert candidate["matched"] + len(candidate["missing"]) == len(system.online)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_extracted_weights_are_the_live_averages(system, suffix, ckptool, tmp_path):
    weights = extracted(ckptool, system, tmp_path / f"ema{suffix}")
    assert_same_tensors(weights, system.averaged)


def test_code_that_knows_no_ema_serves_the_extracted_file(system, ckptool, tmp_path):
    weights = extracted(ckptool, system, tmp_path / "ema.pt")
    answer = outputs(system.consumer.load_weights(weights), system.script)
    assert torch.equal(
        answer, outputs(system.consumer.load_weights(system.averaged), system.script)
    )
    raw = outputs(system.consumer.load_weights(system.online), system.script)
    assert not torch.allclose(answer, raw)


def test_promoted_slot_holds_the_live_averages(system, ckptool, tmp_path):
    slot = promoted(ckptool, system, tmp_path / "promoted.pt")[system.model]
    assert_same_tensors(slot, system.averaged)


def test_promotion_changes_nothing_else(system, ckptool, tmp_path):
    after, before = promoted(ckptool, system, tmp_path / "promoted.pt"), load(system.path)
    assert list(after) == list(before)
    for part in (before, after):
        del part[system.model]
    assert_same_objects(after, before)


def test_code_that_knows_no_ema_serves_the_promoted_file(system, ckptool, tmp_path):
    slot = promoted(ckptool, system, tmp_path / "promoted.pt")[system.model]
    answer = outputs(system.consumer.load_weights(slot), system.script)
    assert torch.equal(
        answer, outputs(system.consumer.load_weights(system.averaged), system.script)
    )


def test_the_projects_own_loader_reads_the_promoted_file_as_the_original(system, ckptool, tmp_path):
    output = tmp_path / "promoted.pt"
    promoted(ckptool, system, output)
    after = outputs(system.consumer.load_for_inference(output), system.script)
    before = outputs(system.consumer.load_for_inference(system.path), system.script)
    assert torch.equal(after, before)


def test_one_line_replaces_the_projects_own_loader(system):
    net = system.consumer.load_weights(library.load_state_dict(system.path))
    by_hand = system.consumer.load_for_inference(system.path)
    assert torch.equal(outputs(net, system.script), outputs(by_hand, system.script))


def test_the_library_gives_either_weights(system):
    assert_same_tensors(library.load_state_dict(system.path, "ema"), system.averaged)
    assert_same_tensors(library.load_state_dict(system.path, "model"), system.online)


# ------------------------------------------------------------------------------- 1: a Lightning run


@pytest.mark.parametrize("name", ["exported.ckpt", "callback_only.ckpt"])
def test_names_of_the_ema_load_strict_into_the_inner_model(name, ckptool, tmp_path):
    output = tmp_path / "ema.pt"
    ckptool("extract-ema", EMACALLBACK / name, "-o", output, "--names", "ema")
    served = load_script("make_emacallback").ServedClassifier()
    served.model.load_state_dict(torch.load(output), strict=True)
    averaged = truth(EMACALLBACK / name, "averaged")
    inner = {name: tensor for name, tensor in averaged.items() if name.startswith("model.")}
    assert_same_tensors(
        {f"model.{name}": t for name, t in served.model.state_dict().items()}, inner
    )


def test_what_the_exported_average_says_of_itself_is_shown(ckptool):
    path = EMACALLBACK / "exported.ckpt"
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["meta"] == {**load(path)["ema_meta"], "last_global_step": 12}
    assert candidate["naming"] == "prefixed"
    assert candidate["missing"] == ["class_weights"]


def test_without_export_the_callback_state_is_found(ckptool):
    path = EMACALLBACK / "callback_only.ckpt"
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate["meta"] == {"num_updates": 11, "last_global_step": 12}
    assert set(candidate["missing"]) == {
        "class_weights",
        "model.encoder.1.running_mean",
        "model.encoder.1.running_var",
        "model.encoder.1.num_batches_tracked",
    }


# ----------------------------------------------------------------------------- 2: a growing average


def test_an_average_of_a_part_names_what_it_lacks(ckptool, tmp_path):
    output = tmp_path / "ema.pt"
    report = ckptool("extract-ema", HAS_EMA / "partial.pt", "-o", output, "--json").json
    assert report["averaged"] == 3
    assert all(name.startswith("backbone.") for name in report["from_model"])
    assert report["tensors"] == report["averaged"] + len(report["from_model"])


def test_a_later_average_lacks_only_buffers(ckptool):
    path = HAS_EMA / "late.pt"
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert [name.rpartition(".")[2] for name in candidate["missing"]] == [*names, *names]


# ------------------------------------------------------------------------ 3: promoted by its script


def test_a_promoted_slot_is_recognised_by_value(ckptool):
    found = ckptool("inspect", EMA_SHADOW / "promoted.pt", "--json").json["ema"]
    assert (found["status"], found["main_slot"]) == ("found", "averaged")


def test_a_promoted_file_gives_its_own_slot(ckptool, tmp_path):
    path, output = EMA_SHADOW / "promoted.pt", tmp_path / "ema.pt"
    report = ckptool("extract-ema", path, "-o", output, "--json").json
    assert (report["main_slot"], report["ema"]) == ("averaged", "state_dict")
    assert_same_tensors(torch.load(output), truth(path, "averaged"))


def test_a_promoted_file_is_promoted_as_an_unchanged_copy(ckptool, tmp_path):
    path, output = EMA_SHADOW / "promoted.pt", tmp_path / "copy.pt"
    done = ckptool("promote-ema", path, "-o", output)
    assert done.exit_code == 0
    assert "already holds the EMA weights" in done
    assert output.read_bytes() == path.read_bytes()


def test_the_flag_alone_says_nothing(ckptool):
    """``using_ema`` is True in the raw file too."""
    assert load(EMA_SHADOW / "raw.pt")["using_ema"] is True
    report = ckptool("inspect", EMA_SHADOW / "raw.pt", "--json").json
    assert report["ema"]["main_slot"] == "raw"


def test_a_tied_weight_follows_the_one_it_is_tied_to(ckptool, tmp_path):
    output = tmp_path / "ema.pt"
    report = ckptool("extract-ema", EMA_SHADOW / "raw.pt", "-o", output, "--json").json
    weights = torch.load(output)
    assert report["tied"] == {"decoder.weight": "embed.weight"}
    assert storage_of(weights["decoder.weight"]) == storage_of(weights["embed.weight"])


# --------------------------------------------------------------------------- 4: a run to be resumed


def test_everything_that_a_resumed_run_needs_is_seen(ckptool):
    training = ckptool("inspect", LAST, "--json").json["training"]
    saved = load(LAST)
    assert training["epoch"] == saved["epoch"] == 150
    assert training["best"] == {name: saved[name] for name in ("best_val_loss", "best_pck")}
    assert training["early_stopping"] == {"epochs_without_improvement": 4}
    assert training["metrics"] == {
        "train_stats/loss": saved["train_stats"]["loss"],
        "val_stats/loss": saved["val_stats"]["loss"],
        "val_stats/pck": float(saved["val_stats"]["pck"]),
    }


def test_three_generators_have_a_state_and_cuda_has_none(ckptool):
    """The list of the CUDA states is empty: the run had no GPU, and nothing can be restored."""
    assert load(LAST)["cuda_rng_state"] == []
    rng = ckptool("inspect", LAST, "--json").json["training"]["rng"]
    places = {"torch": ["rng_state"], "numpy": ["np_rng_state"], "python": ["py_rng_state"]}
    assert rng == places


def test_all_four_generators_are_told_apart(ckptool, tmp_path):
    saved = load(LAST)
    saved["cuda_rng_state"] = [torch.zeros(16, dtype=torch.uint8)]
    torch.save(saved, tmp_path / "gpu.pth")
    rng = ckptool("inspect", tmp_path / "gpu.pth", "--json").json["training"]["rng"]
    assert set(rng) == {"torch", "cuda", "numpy", "python"}
    assert rng["cuda"] == ["cuda_rng_state"]


def test_the_folder_of_the_run_tells_the_best_from_the_last(ckptool):
    report = ckptool("inspect", RESUME, "--json").json
    assert [entry["path"] for entry in report["checkpoints"]] == [str(BEST), str(LAST)]
    assert [entry["epoch"] for entry in report["checkpoints"]] == [146, 150]
    assert [entry["ema"] for entry in report["checkpoints"]] == ["none", "none"]
    assert report["best"] == {"val_stats/loss": str(BEST), "val_stats/pck": str(BEST)}


def test_the_weights_of_a_run_without_ema_are_served():
    script = load_script("make_resume")
    net = script.load_weights(library.load_state_dict(LAST))
    assert torch.equal(
        outputs(net, "make_resume"), outputs(script.load_for_inference(LAST), "make_resume")
    )


# ----------------------------------------------------------------------------- 5: bare DoRA weights


def test_a_bare_state_dict_of_an_adapter_is_weights(ckptool):
    report = ckptool("inspect", DORA / "adapter.pth", "--json").json
    assert [(s["address"], s["role"], s["tensors"]) for s in report["sections"]] == [
        ("", "model", 6)
    ]
    assert report["training"] == {}


def test_adapter_and_base_serve_as_the_projects_own_loader_does():
    script = load_script("make_dora")
    base = library.load_state_dict(DORA / "base.pth")
    adapter = library.load_state_dict(DORA / "adapter.pth")
    net = script.load_weights(base | adapter)
    by_hand = script.load_for_inference(DORA / "adapter.pth")
    assert torch.equal(outputs(net, "make_dora"), outputs(by_hand, "make_dora"))


# ---------------------------------------------------------------------------- those without average


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
@pytest.mark.parametrize("path", WITHOUT_EMA, ids=lambda path: path.stem[:20])
def test_no_ema_is_an_error_with_a_way_on(command, path, ckptool, tmp_path):
    done = ckptool(command, path, "-o", tmp_path / "out.pt")
    assert (done.exit_code, done) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {path}: no EMA weights")
    assert hint.startswith("hint: ")
    assert "--ema ADDRESS" in hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", WITHOUT_EMA, ids=lambda path: path.stem[:20])
def test_no_ema_is_told_by_inspect(path, ckptool):
    ema = ckptool("inspect", path, "--json").json["ema"]
    assert ema == {"status": "none", "main_slot": "unknown", "selected": None, "candidates": []}


def test_what_the_file_declares_is_quoted(ckptool, tmp_path):
    done = ckptool("extract-ema", HAS_EMA / "none.pt", "-o", tmp_path / "out.pt")
    assert "has_ema is False, ema_state_dict is None" in done.stderr


@pytest.mark.parametrize("name", ["none.pt", "old.pt"])
def test_the_library_falls_back_to_the_model_only_when_allowed(name):
    path = HAS_EMA / name
    assert_same_tensors(library.load_state_dict(path), truth(path, "online"))
    with pytest.raises(EmaNotFoundError):
        library.load_state_dict(path, "ema")

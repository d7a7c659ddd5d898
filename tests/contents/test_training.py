"""What a checkpoint says of its run: progress, best results, patience, random states."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from helpers.making import weights


@pytest.fixture
def training(ckptool, tmp_path):
    """Save a model beside the given parts; gives what is said of the run."""

    def of(**parts):
        path = tmp_path / "run.pt"
        torch.save({"model": weights(), **parts}, path)
        return ckptool("inspect", path, "--json").json["training"]

    return of


# ----------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("key", ["epoch", "current_epoch", "cur_epoch", "start_epoch"])
def test_epoch_has_many_names(key, training):
    assert training(**{key: 7}) == {"epoch": 7}


@pytest.mark.parametrize("key", ["global_step", "step", "iteration", "iter", "train_step", "it"])
def test_step_has_many_names(key, training):
    assert training(**{key: 700}) == {"global_step": 700}


def test_the_most_usual_name_counts(training):
    assert training(start_epoch=1, epoch=2, iteration=3, global_step=4) == {
        "epoch": 2,
        "global_step": 4,
    }


def test_numbers_in_tensors_and_of_numpy_count(training):
    assert training(epoch=torch.tensor(7), step=np.int64(700)) == {"epoch": 7, "global_step": 700}


@pytest.mark.parametrize("value", ["seven", True, None, [7], torch.ones(2)])
def test_what_is_no_number_is_no_epoch(value, training):
    assert "epoch" not in training(epoch=value)


def test_mmengine_keeps_both_in_meta(training):
    assert training(meta={"epoch": 3, "iter": 30}) == {"epoch": 3, "global_step": 30}


def test_an_epoch_of_zero_is_one(training):
    assert training(epoch=0, step=0) == {"epoch": 0, "global_step": 0}


# -------------------------------------------------------------------------------- best and patience


def test_best_values_are_found_wherever_they_stand(training):
    found = training(best_acc=0.9, best_val_loss=torch.tensor(0.25), state={"best_score": 3})
    assert found["best"] == {"best_acc": 0.9, "best_val_loss": 0.25, "state/best_score": 3}


def test_a_metric_in_a_log_of_early_stopping_is_no_patience(training):
    found = training(results={"early_stop/val_loss": 0.5, "early_stop_n": 2, "No_Improve": 1})
    assert found["metrics"] == {"results/early_stop~1val_loss": 0.5}
    assert found["early_stopping"] == {"results/early_stop_n": 2, "results/No_Improve": 1}


def test_lightning_callbacks_tell_patience_and_best(training):
    stopping = {"wait_count": 2, "stopped_epoch": 0, "best_score": torch.tensor(0.5), "patience": 3}
    found = training(callbacks={"EarlyStopping{'monitor': 'val_loss'}": stopping})
    place = "callbacks/EarlyStopping{'monitor': 'val_loss'}"
    assert found["best"] == {f"{place}/best_score": 0.5}
    assert found["early_stopping"] == {
        f"{place}/wait_count": 2,
        f"{place}/stopped_epoch": 0,
        f"{place}/patience": 3,
    }


def test_paths_of_the_best_checkpoint_are_no_values(training):
    assert training(callbacks={"c": {"best_model_path": "a.ckpt", "best_k_models": {}}}) == {}


def test_configurations_are_not_searched(training):
    assert training(args={"best_epoch": 3, "patience": 5}, config={"model": {"best_of": 1}}) == {}


# ------------------------------------------------------------------------------------------ metrics


@pytest.mark.parametrize(
    "name",
    ["loss", "val_loss", "train/acc", "val_accuracy", "pck", "mAP", "psnr", "top1_acc1"],
)
def test_metrics_are_told_by_their_name(name, training):
    assert list(training(**{name: 0.5})["metrics"].values()) == [0.5]


def test_metrics_stand_in_dicts_of_results(training):
    found = training(val_stats={"loss": 0.5, "pck": 0.25}, metrics={"fid": 12.5})
    assert found["metrics"] == {"val_stats/loss": 0.5, "val_stats/pck": 0.25, "metrics/fid": 12.5}


def test_losses_among_arguments_are_no_metrics(training):
    assert "metrics" not in training(criterion={"ce_loss": 1.0})


def test_a_weight_is_no_metric(ckptool, tmp_path):
    torch.save(
        {"to_loss": torch.ones(1), "w": torch.ones(2), "v": torch.ones(3)}, tmp_path / "w.pt"
    )
    report = ckptool("inspect", tmp_path / "w.pt", "--json").json
    assert report["training"] == {}


# ------------------------------------------------------------------------------------ random states

STATES = {
    "torch": torch.Generator().get_state(),
    "cuda": [torch.zeros(16, dtype=torch.uint8)],
    "numpy": np.random.RandomState(1).get_state(),
    "python": random.Random(1).getstate(),
}
KEYS = {
    "torch": ("rng_state", "torch_rng_state", "cpu_rng"),
    "cuda": ("cuda_rng_state", "gpu_rng_states", "torch.cuda_random_state"),
    "numpy": ("np_rng_state", "numpy", "x"),
    "python": ("py_rng_state", "random", "y"),
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in KEYS for key in KEYS[kind]])
def test_a_random_state_is_told_by_its_form(kind, key, training):
    assert training(**{key: STATES[kind]})["rng"] == {kind: [key]}


def test_random_states_are_found_together_in_a_dict(training):
    found = training(rng={f"{kind}_rng_state": state for kind, state in STATES.items()})
    assert found["rng"] == {kind: [f"rng/{kind}_rng_state"] for kind in STATES}


def test_a_numpy_generator_is_one(training):
    state = np.random.default_rng(1).bit_generator.state
    assert training(np_rng=state)["rng"] == {"numpy": ["np_rng"]}


@pytest.mark.parametrize("empty", [[], {}, ()])
def test_no_gpu_is_no_state(empty, training):
    assert "rng" not in training(cuda_rng_state=empty)


def test_a_seed_and_a_mask_are_no_states(training):
    assert "rng" not in training(seed=3, mask=torch.zeros(8, dtype=torch.uint8), numpy="MT19937")


def test_a_state_can_be_restored_from_what_is_named(training, tmp_path):
    found = training(rng_state=STATES["torch"])["rng"]["torch"]
    torch.Generator().set_state(torch.load(tmp_path / "run.pt")[found[0]])

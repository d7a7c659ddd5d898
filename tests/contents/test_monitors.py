"""Which way a result is better: the file first, then the name, then the user."""

from __future__ import annotations

import argparse
import math

import pytest
import torch

from helpers.making import save, weights

LIGHTNING = "ModelCheckpoint{'monitor': '%s', 'mode': '%s', 'every_n_train_steps': 0}"


@pytest.fixture
def run(tmp_path):
    """Write three checkpoints; ``part(value)`` gives what each has beside the weights."""

    def of(part, values=(0.5, 0.2, 0.9)):
        for epoch, value in enumerate(values):
            torch.save(
                {"model": weights(), "epoch": epoch, **part(value)}, tmp_path / f"e{epoch}.pt"
            )
        return tmp_path

    return of


def chosen(ckptool, folder, metric):
    output = ckptool("verify", folder, "--best", metric)
    assert output.exit_code == 0, output
    return output.strip().rpartition("/")[2]


LOWEST, HIGHEST = "e1.pt", "e2.pt"

# What a file says of its results, the number to ask for, and the best of 0.5, 0.2 and 0.9.
SAID = {
    "Lightning's key, min": (
        lambda v: {"callbacks": {LIGHTNING % ("val_loss", "min"): {"best_model_score": v}}},
        "best_model_score", LOWEST,
    ),
    "Lightning's key, max": (
        lambda v: {"callbacks": {LIGHTNING % ("val_loss", "max"): {"best_model_score": v}}},
        "best_model_score", HIGHEST,
    ),
    "a tensor as score": (
        lambda v: {"callbacks": {
            LIGHTNING % ("q", "min"): {"best_model_score": torch.tensor(v), "best_model_path": "x"}
        }},
        "best_model_score", LOWEST,
    ),
    "a monitor alone, by its name": (
        lambda v: {"callbacks": {"Checkpoint": {"monitor": "val_wer", "best_model_score": v}}},
        "best_model_score", LOWEST,
    ),
    "early stopping": (
        lambda v: {"early_stopping": {"mode": "min", "best_score": v, "counter": 1}},
        "best_score", LOWEST,
    ),
    "ReduceLROnPlateau": (
        lambda v: {"scheduler": {"mode": "min", "best": v, "num_bad_epochs": 0, "last_epoch": 3}},
        "scheduler/best", LOWEST,
    ),
    "a plateau in a list": (
        lambda v: {"lr_schedulers": [{"mode": "max", "best": v, "num_bad_epochs": 0}]},
        "lr_schedulers/0/best", HIGHEST,
    ),
    "Hugging Face's arguments": (
        lambda v: {"best_metric": v,
                   "args": {"metric_for_best_model": "eval_q", "greater_is_better": False}},
        "best_metric", LOWEST,
    ),
    "arguments as a namespace": (
        lambda v: {"best_metric": v, "args": argparse.Namespace(greater_is_better=True)},
        "best_metric", HIGHEST,
    ),
    "the metric that is best by its name": (
        lambda v: {"best_metric": v, "args": {"metric_for_best_model": "eval_perplexity"}},
        "best_metric", LOWEST,
    ),
    "timm": (
        lambda v: {"metric": v, "args": argparse.Namespace(eval_metric="top1")},
        "metric", HIGHEST,
    ),
    "a rule of mmengine": (
        lambda v: {"meta": {"hook_msgs": {"best_score": v, "rule": "less"}}},
        "best_score", LOWEST,
    ),
    "the file against the name": (
        lambda v: {"val_loss": v, "trainer": {"monitor": "val_loss", "mode": "max"}},
        "val_loss", HIGHEST,
    ),
    "a metric that no table has": (
        lambda v: {"metrics": {"quality": v}, "trainer": {"monitor": "quality", "mode": "min"}},
        "quality", LOWEST,
    ),
    "the direction of another metric": (
        lambda v: {"val_acc": v, "trainer": {"monitor": "val_loss", "mode": "min"}},
        "val_acc", HIGHEST,
    ),
    "should_decrease": (
        lambda v: {"metric_tracker": {"best_so_far": v, "should_decrease": True}},
        "best_so_far", LOWEST,
    ),
    "the sign of AllenNLP": (
        lambda v: {"tracker": {"best_so_far": v, "validation_metric": "-quality"}},
        "best_so_far", LOWEST,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_the_file_says_which_way_is_better(case, run, ckptool):
    part, metric, best = SAID[case]
    assert chosen(ckptool, run(part), metric) == best


@pytest.mark.parametrize(
    ("metric", "best"), [("val_loss", LOWEST), ("psnr", HIGHEST), ("lpips", LOWEST)]
)
def test_else_the_name_says_it(metric, best, run, ckptool):
    assert chosen(ckptool, run(lambda v: {"metrics": {metric: v}}), metric) == best


@pytest.mark.parametrize("metric", ["quality", "metrics/quality"])
def test_else_the_user_is_asked(metric, run, ckptool):
    folder = run(lambda v: {"metrics": {"quality": v}})
    output = ckptool("verify", folder, "--best", metric)
    assert (output.exit_code, output.stdout) == (2, "")
    assert f"--best {metric}:min or --best {metric}:max" in output.stderr
    assert chosen(ckptool, folder, f"{metric}:min") == LOWEST
    assert chosen(ckptool, folder, f"{metric}:max") == HIGHEST


def test_what_is_typed_counts_more_than_name_and_file(run, ckptool):
    folder = run(lambda v: {"val_loss": v, "trainer": {"monitor": "val_loss", "mode": "min"}})
    assert chosen(ckptool, folder, "val_loss:max") == HIGHEST


def test_files_that_contradict_each_other_are_not_believed(run, ckptool):
    modes = iter(("min", "max", "min"))
    folder = run(lambda v: {"stopper": {"monitor": "q", "mode": next(modes), "best_score": v}})
    output = ckptool("verify", folder, "--best", "best_score")
    assert output.exit_code == 2
    assert "contradict" in output.stderr


def test_two_statements_in_one_file_are_each_of_their_own_metric(run, ckptool):
    def part(value):
        states = {
            LIGHTNING % ("val_loss", "min"): {"best_model_score": value},
            LIGHTNING % ("val_acc", "max"): {"best_model_score": value},
        }
        return {"callbacks": states, "val_acc": value}

    folder = run(part)
    output = ckptool("verify", folder, "--best", "best_model_score")
    assert output.exit_code == 2
    assert "has 2 values, at different key paths" in output.stderr
    assert chosen(ckptool, folder, "val_acc") == HIGHEST
    key = LIGHTNING % ("val_loss", "min")
    assert chosen(ckptool, folder, f"callbacks/{key}/best_model_score") == LOWEST


def test_the_optimizers_maximize_says_nothing(run, ckptool):
    group = {"lr": 0.1, "maximize": True, "params": []}
    folder = run(lambda v: {"best_metric": v, "optimizer": {"state": {}, "param_groups": [group]}})
    assert ckptool("verify", folder, "--best", "best_metric").exit_code == 2


# ----------------------------------------------------------------------------- any number of a file


@pytest.mark.parametrize(
    "name", ["extra/deep/down", "deep/down", "down", "config/lr_found", "log/1/eval_q", "eval_q"]
)
def test_every_number_of_a_file_can_be_named(name, run, ckptool):
    folder = run(lambda v: {
        "extra": {"deep": {"down": v}}, "config": {"lr_found": v},
        "log": [{"eval_q": -v}, {"eval_q": v, "step": 2}],
    })  # fmt: skip
    assert chosen(ckptool, folder, f"{name}:min") == LOWEST


def test_a_result_that_only_a_callback_keeps_is_found_by_what_it_monitors(run, ckptool):
    def part(value):
        state = {"monitor": "quality", "current_score": torch.tensor(value), "dirpath": "/x"}
        return {"callbacks": {LIGHTNING % ("quality", "min"): state | {"best_model_score": 0.1}}}

    assert chosen(ckptool, run(part), "quality") == LOWEST


def test_a_name_is_a_whole_part_of_a_key_path(run, ckptool):
    folder = run(lambda v: {"metrics": {"power": v}})
    output = ckptool("verify", folder, "--best", "wer")
    assert output.exit_code == 2
    assert "there are: metrics/power" in output.stderr


def test_numbers_that_are_no_numbers_are_passed_over(run, ckptool):
    folder = run(lambda v: {"metrics": {"q": v}}, values=(math.nan, 0.2, 0.9))
    assert chosen(ckptool, folder, "q:max") == HIGHEST


def test_a_damaged_checkpoint_is_passed_over(run, ckptool):
    folder = run(lambda v: {"deep": {"down": v}})
    (folder / "cut.pt").write_bytes((folder / "e0.pt").read_bytes()[:500])
    assert chosen(ckptool, folder, "down:max") == HIGHEST


# -------------------------------------------------------------------------------- what inspect says

STORED = {
    "val_loss": 0.2, "metrics": {"top1": 0.8, "lpips": 0.1, "quality": 3.0, "power": 2.0},
    "best_psnr": 31.5, "eval_bleu": 27.0,
}  # fmt: skip


def test_every_result_is_listed(tmp_path, ckptool):
    path = save(tmp_path / "a.pt", weights(), **STORED)
    training = ckptool("inspect", path, "--json").json["training"]
    assert training["metrics"] == {
        "val_loss": 0.2, "metrics/top1": 0.8, "metrics/lpips": 0.1, "metrics/quality": 3.0,
        "metrics/power": 2.0, "eval_bleu": 27.0,
    }  # fmt: skip
    assert training["best"] == {"best_psnr": 31.5}
    better = {name: told["is"] for name, told in training["better"].items()}
    assert better == {
        "val_loss": "lower", "metrics/top1": "higher", "metrics/lpips": "lower",
        "best_psnr": "higher", "eval_bleu": "higher",
    }  # fmt: skip


def test_results_in_tensors_are_listed_too(tmp_path, ckptool):
    results = {"acc": torch.tensor(0.5), "q": torch.tensor(2)}
    path = save(tmp_path / "a.pt", weights(), metrics=results)
    found = ckptool("inspect", path, "--json").json["training"]["metrics"]
    assert found == {"metrics/acc": 0.5, "metrics/q": 2}


@pytest.mark.parametrize("key", ["metrics", "val_stats", "logs", "results", "test", "eval"])
def test_results_stand_under_many_keys(key, tmp_path, ckptool):
    path = save(tmp_path / "a.pt", weights(), **{key: {"inner": {"q": 1.5}, "epoch": 3}})
    found = ckptool("inspect", path, "--json").json["training"]["metrics"]
    assert found == {f"{key}/inner/q": 1.5}


def test_a_metric_by_parts_of_the_data_is_listed(tmp_path, ckptool):
    path = save(tmp_path / "a.pt", weights(), loss={"train": 0.1, "val": 0.2, "weight": 3.0})
    found = ckptool("inspect", path, "--json").json["training"]["metrics"]
    assert found == {"loss/train": 0.1, "loss/val": 0.2}


@pytest.mark.parametrize("key", ["score_model", "loss_module", "metric_net"])
def test_one_element_weights_under_such_a_key_are_no_results(key, tmp_path, ckptool):
    part = {"weight": torch.ones(3, 3), "bias": torch.ones(3), "logit_scale": torch.tensor(2.0)}
    path = save(tmp_path / "a.pt", weights(), **{key: part})
    assert "metrics" not in ckptool("inspect", path, "--json").json["training"]


def test_a_folder_shows_every_metric_and_why_one_is_best(run, ckptool):
    folder = run(lambda v: {"metrics": dict.fromkeys(("top1", "lpips", "q"), v), "best_psnr": v})
    shown = ckptool("inspect", folder)
    heads = shown.splitlines()[1].split()
    assert heads == ["file", "epoch", "metrics/top1", "metrics/lpips", "metrics/q", "best_psnr",
                     "size", "changed", "EMA"]  # fmt: skip
    assert "best metrics/top1: 0.9 in e2.pt  (higher is better, by its name)" in shown
    assert "best metrics/lpips: 0.2 in e1.pt  (lower is better, by its name)" in shown
    assert "no best by metrics/q: it is not known whether lower or higher is better" in shown
    assert "--best metrics/q:max" in shown
    report = ckptool("inspect", folder, "--json").json
    assert report["best_by"]["metrics/top1"] == {
        "path": str(folder / "e2.pt"), "value": 0.9, "better": "higher", "because": "its name",
    }  # fmt: skip
    assert report["unrated"] == ["metrics/q"]


def test_the_table_says_which_file_told_the_direction(run, ckptool):
    folder = run(lambda v: {"metrics": {"q": v}, "trainer": {"monitor": "q", "mode": "min"}})
    assert "best metrics/q: 0.2 in e1.pt  (lower is better, by trainer/mode)" in ckptool(
        "inspect", folder
    )


def test_a_best_value_is_judged_as_the_file_says(tmp_path, ckptool):
    more = {"trainer": {"monitor": "q", "mode": "max"}, "best_q": 0.5, "val_q": 0.9, "epoch": 3}
    path = save(tmp_path / "a.pt", weights(), **more)
    output = ckptool("verify", path, "--select", "CK514", "--json").json
    assert [f["message"] for f in output["findings"]] == [
        "the best is 0.5, but the last result, 0.9, is better"
    ]

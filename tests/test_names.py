"""Words in names: whole ones only, wherever the package looks for words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import ckptool
from ckptool.contents.metrics import better_direction, is_best, is_metric, measured
from ckptool.names import KINDS, says, tokens, whole
from helpers.making import save, weights

# Names that hold, inside longer words, a word by which the package tells something.
INSIDE = (
    "power", "answer", "flower", "sampler", "clamp", "example", "lamp", "amplitude", "schema",
    "cinema", "semantic", "remap", "mapper", "bitmap", "macro", "accent", "accumulate", "succeed",
    "glossary", "flossing", "terror", "interval", "evaluate", "retrieval", "latest", "contest",
    "attest", "orange", "string", "barcuda", "adopt", "adoption", "optical", "option_value",
    "sweater", "swatch", "target_less", "beestings", "bestow", "bestiary", "magnet", "cabinet",
    "planet", "internet", "modelling", "awaiting", "improvement_rate", "encounter", "trainer",
    "biloop", "metadatabase", "seedling", "avgas", "schedule_sampler", "fiducial", "confidence",
    "piou", "merge", "resultant", "statsmodels", "catalogs", "dialog", "epochal", "stepping",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val_loss", ["val", "loss"]),
        ("valLoss", ["val", "loss"]),
        ("metrics/val-acc.top5", ["metrics", "val", "acc", "top", "5"]),
        ("EMACallback", ["ema", "callback"]),
        ("HTTPServer2", ["http", "server", "2"]),
        ("mAP50-95", ["m", "ap", "50", "95"]),
        ("größe_äußere", ["größe", "äußere"]),
        ("", []),
    ],
)
def test_names_are_split_at_signs_digits_and_camel_case(name, split):
    assert list(tokens(name)) == split


@pytest.mark.parametrize("name", INSIDE)
def test_a_word_inside_a_word_is_no_metric(name):
    assert not is_metric(name)
    assert not is_best(name)
    assert better_direction(name) == 0


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A training state whose keys are words that hold other words."""
    from helpers.output import run_inside

    folder = tmp_path_factory.mktemp("inside")
    numbers = dict.fromkeys(INSIDE, 0.5)
    parts = {f"{name}_part": {"a": [1, 2], "b": {"c": 3}} for name in INSIDE}
    byte_rows = {f"{name}_bytes": torch.zeros(4096, dtype=torch.uint8) for name in INSIDE}
    path = save(folder / "run.pt", weights(), **numbers, **parts, **byte_rows)
    return path, run_inside("inspect", path, "--json").json


def test_words_inside_words_say_nothing_of_the_training(state):
    assert state[1]["training"] == {}


@pytest.mark.parametrize("name", sorted(set(INSIDE) - {"target_less", "option_value"}))
def test_words_inside_words_give_a_section_no_role(name, state):
    roles = {section["address"]: section["role"] for section in state[1]["sections"]}
    assert roles[f"{name}_part"] == "other"


def test_words_inside_words_make_no_finding(state, ckptool):
    output = ckptool("verify", state[0], "--select", "CK5", "--json").json
    blamed = {f["rule"] for f in output["findings"] if any(n in f["message"] for n in INSIDE)}
    placed = {f["rule"] for f in output["findings"] if f["address"]}
    assert (blamed, placed) == (set(), set())


@pytest.mark.parametrize("word", [*KINDS, "wer", "scaler", "rng"])
@pytest.mark.parametrize("form", ["{}", "a_{}", "{}_b", "a/{}.b", "a{}1", "A{}B", "{}s", "X-{}-Y"])
def test_a_whole_word_is_found_in_every_style(word, form):
    styled = form.format(word.capitalize() if form[:1] in "aA" and "_" not in form else word)
    assert says(styled.replace("a/", "a."), whole(word))


def test_runs_of_words_and_their_places_count():
    assert says("my_randomStates", whole("random_state"))
    assert not says("random_seed_state", whole("random_state"))
    assert says("train_loop", whole("loop$"))
    assert not says("loop_count", whole("loop$"))
    assert says("negative_loss", whole("^negative"))
    assert not says("false_negative", whole("^negative"))


# ------------------------------------------------------------------------------------ directions

LOWER = (
    "loss", "val_loss", "valloss", "trainLoss", "error", "top1_error", "err", "wer", "val/WER",
    "cer", "perplexity", "ppl", "fid", "fid50k_full", "fid_score", "lpips", "mae", "val_rmse",
    "mse", "bits_per_dim", "bpd", "nll", "dice_loss", "ssim_loss", "neg_log_likelihood",
    "elbo_loss",
    "negative_log_likelihood", "min_val_loss", "losses/total_loss", "log_loss", "eer", "kl",
    "cross_entropy", "mean_absolute_error", "error_rate", "MSELoss", "kid", "neg_accuracy",
)  # fmt: skip
HIGHER = (
    "acc", "val_acc", "testacc", "accuracy", "top1", "top_5", "top1_acc", "f1", "F1Score",
    "f1_macro", "psnr", "ssim", "auc", "roc_auc", "AUROC", "map", "mAP", "mAP50-95", "map_50",
    "iou", "mIoU", "IoU", "bleu", "BLEU4", "reward", "episode_return", "score", "r2", "r2_score",
    "dice", "pck", "recall", "precision", "ndcg", "success_rate", "elbo", "fitness", "rougeL",
    "losses/ssim", "clip_score", "neg_mean_squared_error", "exact_match", "inception_score",
)  # fmt: skip
UNKNOWN = ("quality", "metric", "value", "divergent", "x", "dice_fid", "", "alpha", "q_mean")


@pytest.mark.parametrize(
    ("name", "direction"),
    [*((n, -1) for n in LOWER), *((n, 1) for n in HIGHER), *((n, 0) for n in UNKNOWN)],
)
def test_a_name_says_which_way_is_better(name, direction):
    assert better_direction(name) == direction
    assert better_direction(f"metrics/{name}") == direction


@pytest.mark.parametrize(
    "name",
    ["loss_scale", "val_interval", "eval_steps", "test_size", "loss_weight", "num_val_samples",
     "val_batch_size", "score_threshold", "log_every", "kl_weight", "accuracy_fn"],
)  # fmt: skip
def test_settings_are_no_metrics(name):
    assert not is_metric(name)


@pytest.mark.parametrize("name", ["loss_epoch", "val_acc_step", "test_f1_epoch"])
def test_when_a_metric_was_logged_does_not_matter(name):
    assert is_metric(name)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("best_acc", True), ("val_loss_best", True), ("bestLoss", True), ("min_val_loss", True),
     ("max_acc", True), ("max_loss", False), ("min_lr", False), ("max_epochs", False)],
)  # fmt: skip
def test_best_values_are_told_by_their_name(name, is_one):
    assert is_best(name) == is_one


@pytest.mark.parametrize(
    "name", ["val_stats/loss", "best_val_loss", "bestvalloss", "loss", "val/loss"]
)
def test_names_of_one_result_are_one(name):
    assert measured(name.replace("bestval", "best_val")) == "loss"


def test_no_module_looks_for_words_by_itself():
    """``word in name.lower()`` finds words inside words; ``says`` does not."""
    offenders = []
    for path in Path(ckptool.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
                text = ast.unparse(node.comparators[0])
                if re.search(r"\.(lower|casefold)\(\)$", text):
                    offenders.append(f"{path.name}: {ast.unparse(node)}")
    assert not offenders

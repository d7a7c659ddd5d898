"""Names of metrics: which numbers are results of a run, and which way each is better.

There are three tables. ``LOWER`` and ``HIGHER`` hold the words that state a direction. ``WEAK``
holds words that many names have and that decide only where nothing else does. Words are whole words
(``names.py``), also where scripts glue them together: ``valloss`` is ``val`` and ``loss``.
"""

from __future__ import annotations

from functools import lru_cache

from ckptool.names import Words, holds, tokens, whole

# Words by which lower is better, whatever else the name says: dice_loss, error_rate.
LOSSES = whole("loss", "losses", "error", "err", "cost", "regret", "divergence", "distance")

LOWER_WORDS = (
    "bce", "bits_per_byte", "bits_per_char", "bits_per_dim", "bpb", "bpc", "bpd", "brier",
    "brisque", "ce", "cer", "chamfer", "cross_entropy", "der", "dist", "ece", "edit_distance",
    "eer", "epe", "fad", "fid", "fvd", "hausdorff", "kid", "kl", "kld", "latency", "levenshtein",
    "log_loss", "lpips", "mae", "mape", "mcd", "mpjpe", "mse", "msle", "nfe", "niqe", "nll",
    "nmse", "nrmse", "perplexities", "perplexity", "ppl", "residual", "rmse", "rmsle", "smape",
    "ter", "wer", "xent", "false_negative", "false_positive", "fnr", "fpr",
)  # fmt: skip
HIGHER_WORDS = (
    "acc", "accuracies", "accuracy", "ap", "auc", "auprc", "auroc", "average_precision", "bleu",
    "bleurt", "chrf", "cider", "clip_score", "correlation", "dice", "elbo", "exact_match", "f1",
    "f2", "fitness", "fscore", "gain", "hit", "IoU", "iou", "jaccard", "kappa", "likelihood",
    "mAP", "map", "matthews", "mcc", "meteor", "miou", "mrr", "ndcg", "nDCG", "pck", "pearson",
    "pearsonr", "pesq", "precision", "psnr", "r2", "rand_index", "recall", "return", "reward",
    "roc", "rouge", "sdr", "sensitivity", "sisdr", "snr", "spearman", "spearmanr", "specificity",
    "spice", "ssim", "stoi", "success", "top1", "top3", "top5", "top10", "tnr", "tpr",
    "true_negative", "true_positive", "win_rate",
)  # fmt: skip
LOWER, HIGHER = whole(*LOWER_WORDS), whole(*HIGHER_WORDS)
WEAK = whole("score")  # higher is better, unless another word decides: fid_score

# Words that reverse the direction: neg_mean_squared_error, negative_loss.
NEGATED = whole("neg", "minus", "^negative", "negative_log", "negative_loss")

# Words of settings and counters, which are no results: loss_scale, val_interval, log_every.
SETTINGS = whole(
    "alpha", "base", "batch", "beta", "bs", "coef", "coeff", "count", "counter", "decay",
    "dropout", "epoch", "eps", "every", "factor", "fn", "fraction", "freq", "frequency", "gamma",
    "id", "iter", "interval", "iteration", "lambda", "learning_rate", "length", "lr", "margin",
    "momentum", "multiplier", "n", "num", "number", "patience", "period", "power", "rank", "ratio",
    "reduction",
    "runtime", "sample", "samples_per_second", "scale", "scaling", "seconds", "seed", "size",
    "smoothing", "split", "step", "temperature", "threshold", "time", "timestamp", "tolerance",
    "type", "version", "warmup", "weight", "window", "worker", "world",
)  # fmt: skip
# Trainers name results after the time of logging: Lightning's loss_epoch and loss_step.
LOGGED = frozenset({"epoch", "step"})

# Parts of the data that results come from; those of the training set are considered last.
HELD_OUT_WORDS = (
    "val", "valid", "validation", "eval", "evaluation", "test", "dev", "heldout", "holdout",
)  # fmt: skip
HELD_OUT = whole(*HELD_OUT_WORDS)
TRAINING = frozenset({"train", "training"})
# Keys of dicts whose numbers are results.
RESULTS = whole(
    "stat", "metric", "result", "score", "log", "performance", "history", "evaluation", "val$",
    "valid$", "validation$", "eval$", "test$", "losses$",
)  # fmt: skip
# Statistics that are no results: a dataset is normalised by them.
NORMALS = whole("norm", "normalizer", "normalization", "data", "dataset", "image", "pixel", "obs")

BEST = whole("best", "lowest", "highest")
MINIMUM, MAXIMUM = whole("min", "minimum"), whole("max", "maximum")
LONGEST = 2000  # characters of a key path that are looked at

# Words besides the metric: without them, best_val_loss and val_stats/loss are one.
NOISE = frozenset({
    *HELD_OUT_WORDS, "best", "lowest", "highest", "current", "last", "latest", "avg", "mean",
    "average", "model", "stats", "stat", "metrics", "metric", "results", "result", "scores",
    "logs", "log", "value", "so", "far",
})  # fmt: skip

# What is glued together in names, as in ``valloss``.
_BEGINNINGS = ("train", "valid", "val", "test", "eval", "dev", "best", "min", "max")
_GLUED = frozenset({
    "loss", "acc", "accuracy", "err", "error", "auc", "f", "map", "iou", "miou", "psnr", "ssim",
    "mae", "mse", "rmse", "wer", "cer", "bleu", "ppl", "fid", "dice", "pck", "score",
})  # fmt: skip


@lru_cache(maxsize=1 << 12)
def metric_tokens(name: str) -> tuple[str, ...]:
    """Split a name into words, glued ones too: ``valloss`` -> val, loss."""
    return tuple(part for token in tokens(name) for part in _unglued(token))


def _unglued(token: str) -> tuple[str, ...]:
    for begin in _BEGINNINGS:
        rest = token.removeprefix(begin)
        if rest in _GLUED and rest != token:
            return begin, rest
    return (token,)


def _says(name: str, wanted: Words) -> bool:
    return holds(metric_tokens(name[:LONGEST]), wanted)


def better_direction(address: str) -> int:
    """Return -1 where lower is better by the name, 1 where higher is, 0 where it does not say.

    The last part of a key path that states a direction decides: ``losses/ssim`` is an ``ssim``.
    """
    return strong_direction(address) or int(_says(address, WEAK))


def strong_direction(address: str) -> int:
    """Return the direction by the name without the words in ``WEAK``; see better_direction."""
    parts = address[:LONGEST].split("/")
    return next(filter(None, map(_direction, reversed(parts))), 0)


def _direction(name: str) -> int:
    lower, higher = _says(name, LOWER), _says(name, HIGHER)
    # 0 where it says both, unless it is a loss.
    direction = -1 if _says(name, LOSSES) else higher - lower
    return -direction if _says(name, NEGATED) else direction


def is_metric(name: str) -> bool:
    """Return whether a name is that of a result by its words: ``val_loss``, not ``loss_scale``."""
    tables = (LOSSES, LOWER, HIGHER, WEAK, HELD_OUT)
    return any(_says(name, table) for table in tables) and not is_setting(name)


def is_setting(name: str) -> bool:
    """Return whether a name is that of a setting or a counter, and not of a result."""
    words = metric_tokens(name[:LONGEST])
    if words and words[-1] in LOGGED and better_direction("_".join(words[:-1])):
        words = words[:-1]
    return holds(words, SETTINGS)


def is_best(name: str, *, among_results: bool = False) -> bool:
    """Return whether a name is that of the best result so far: ``best_acc``, ``min_val_loss``."""
    if _says(name, BEST) or tokens(name[:LONGEST]) == ("metric",):  # the second is timm's
        return True
    extreme = _says(name, MAXIMUM) - _says(name, MINIMUM)
    is_extreme = extreme != 0 and extreme == strong_direction(name) and not is_setting(name)
    return is_extreme and not among_results  # among results, loss_min is the least of an epoch


def is_of_training(address: str) -> bool:
    """Return whether a result is of the training set: ``train_stats/loss``, ``loss/train``."""
    parts = map(metric_tokens, address[:LONGEST].split("/"))
    return any(word in TRAINING for words in parts for word in (words[:1] + words[-1:]))


def is_held_out(address: str) -> bool:
    """Return whether a result is of data that was not trained on: ``val_stats/loss``."""
    return _says(address, HELD_OUT)


def holds_results(key: str) -> bool:
    """Return whether the numbers of a dict with this key are results."""
    return _says(key, RESULTS) and not _says(key, NORMALS)


def is_split(key: str) -> bool:
    """Return whether a key names a part of the data: the keys of ``{"loss": {"train": 0.1}}``."""
    words = metric_tokens(key[:LONGEST])
    return bool(words) and (words[0] in TRAINING or words[0] in HELD_OUT_WORDS)


def measured(address: str) -> str:
    """Return the metric alone: ``loss`` for ``val_stats/loss`` and for ``best_val_loss``."""
    return "_".join(word for word in metric_tokens(address[:LONGEST]) if word not in NOISE)

"""Words that mark averages, and the many that only look like them."""

from __future__ import annotations

import pytest

from ckptool.names import is_raw, marker_in, may_mark, unmarked, words


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ema", "ema"),
        ("EMA", "ema"),
        ("EMACallback", "ema"),
        ("state_dict_ema", "ema"),
        ("ema_state_dict", "ema"),
        ("model-EMA", "ema"),
        ("modelEma", "ema"),
        ("ema_0.9999_000005", "ema"),
        ("ema2", "ema"),
        ("G_ema", "ema"),
        ("shadow_params", "ema"),
        ("avg_model", "ema"),
        ("average_model_state", "ema"),
        ("averaged_model", "ema"),
        ("polyak", "ema"),
        ("swa_model", "swa"),
        ("teacher", "teacher"),
        ("backbone_momentum", "momentum-encoder"),
        ("encoder_k", "momentum-encoder"),
        ("target_encoder", "target-network"),
        ("actor_target", "target-network"),
        ("StochasticWeightAveraging", None),
        ("semantic", None),
        ("schema", None),
        ("cinema", None),
        ("theme", None),
        ("emau", None),
        ("gemach", None),
        ("swarm", None),
        ("avgpool", None),
        ("shadows", "ema"),
        ("emas", "ema"),
        ("modelEmas", "ema"),
        ("param_averages", "ema"),
        ("schemas", None),
        ("cinemas", None),
        ("exp_avgs", None),
        ("targets", None),
        ("encoder_kv", None),
        ("exp_avg", None),
        ("exp_avg_sq", None),
        ("max_exp_avg_sq", None),
        ("square_avg", None),
        ("grad_avg", None),
        ("", None),
    ],
)
def test_whole_words_mark(text, kind):
    found = marker_in([text])
    assert (found and found.kind) == kind


def test_words_that_are_layers_mark_too_and_alignment_decides():
    """``ema_gate``, ``avg_pool``: nothing pairs with them, so nothing comes of it."""
    assert [marker_in([text]) is not None for text in ("ema_gate", "avg_pool", "shadow_net")] == [
        True,
        True,
        True,
    ]


def test_first_marker_of_an_address_counts():
    assert marker_in(["callbacks", "EMACallback", "shadow"]).word == "ema"


@pytest.mark.parametrize("word", ["collected", "backup", "stored", "online"])
def test_words_for_raw_weights_take_the_mark_away(word):
    assert marker_in(["ema", f"{word}_params"]) is None
    assert marker_in([f"{word}_params", "ema"]) is None
    assert is_raw(f"{word}_model")
    assert not is_raw(f"{word}s")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("EMACallback", ("ema", "callback")),
        ("state_dict_ema", ("state", "dict", "ema")),
        ("modelEMAWeights", ("model", "ema", "weights")),
        ("ema_0.9999", ("ema",)),
        ("123", ()),
    ],
)
def test_text_splits_into_words(text, parts):
    assert words(text) == parts


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("actor_target", "actor"),
        ("target_actor", "actor"),
        ("model-EMA", "model"),
        ("model_ema", "model"),
        ("unet_ema", "unet"),
        ("ema", ""),
        ("ema_model", "model"),
        ("module.encoder_k", "module.encoder_k"),
        ("encoder_k", "encoder_q"),
        ("last_ema_3", "last_3"),
        ("epoch=2-EMA", "epoch=2"),
        ("semantic", "semantic"),
    ],
)
def test_unmarked(text, bare):
    assert unmarked(text) == bare


@pytest.mark.parametrize(
    "text", ["x.ema.y", "X.EMA.y", "encoder_k.w", "semantic", "w\n" * 2000 + "ema"]
)
def test_quick_look_never_misses(text):
    assert may_mark(text)


def test_quick_look_spares_most_names():
    assert not may_mark("layers.0.attention.query.weight")

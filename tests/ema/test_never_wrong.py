"""Files made to mislead: with exit 0 the average comes out, tensor by tensor, or nothing does.

Each row makes a file and says what an extraction may answer: the weights, or a refusal. ``FOUND``
rows must be found; of ``SAFE`` rows a refusal is an answer too; ``REFUSED`` rows have no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from helpers.tensors import assert_same_tensors, load
from helpers.twins import SHAPES, Weights, drawn, near, save, under, without

FOUND, SAFE, REFUSED = "found", "safe", "refused"


class Case(NamedTuple):
    """What is in a file, and the weights that may be extracted from it."""

    content: Any  # saved as last.pt; a dict of paths to contents when it is several files
    answer: Weights | None
    verdict: str


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


class Files(dict):
    """Several files; ``last.pt`` is the one that is asked."""


MODEL = drawn()
EMA = near(MODEL)


def values(weights: Weights) -> list[Tensor]:
    return list(weights.values())


def found(content: Any, answer: Weights = EMA) -> Case:
    return Case(content, answer, FOUND)


def safe(content: Any, answer: Weights = EMA) -> Case:
    return Case(content, answer, SAFE)


def refused(content: Any) -> Case:
    return Case(content, None, REFUSED)


# -------------------------------------------------------------------- raw copies under marked names


@case
def online_copy_beside_the_average():
    return found(
        {"model": MODEL, "ema": {**under("online_model.", MODEL), **under("ema_model.", EMA)}}
    )


@case
def online_copy_first_and_no_model():
    both = {**under("online_model.", MODEL), **under("ema_model.", EMA)}
    return found(both, under("online_model.", EMA))


@case
def collected_list_beside_the_shadow_list():
    names = without(MODEL, "running")
    ema = {"shadow_params": [EMA[n] for n in names], "collected_params": [MODEL[n] for n in names]}
    return found({"model": MODEL, "ema": ema}, MODEL | {n: EMA[n] for n in names})


@case
def backup_table_beside_the_shadow_table():
    return found({"model": MODEL, "ema": {"shadow": EMA, "backup": MODEL}})


@case
def stored_table_inside_the_average():
    return found({"model": MODEL, "ema": {"stored": MODEL, "averaged": EMA}})


@case
def raw_copy_without_a_word_for_it():
    return safe({"model": MODEL, "ema": {"weights": EMA, "original": MODEL}})


@case
def online_prefix_inside_the_state_dict():
    both = {**under("ema.online.", MODEL), **under("ema.shadow.", EMA)}
    return safe({"state_dict": both, "x": 1}, under("ema.online.", EMA))


@case
def mmengine_whose_message_hub_was_stripped():
    ema = {"steps": torch.tensor(9), **under("module.", MODEL)}
    return safe({"meta": {"epoch": 3}, "state_dict": EMA, "ema_state_dict": ema})


# ------------------------------------------------------------------------------- several candidates


@case
def two_averages_that_differ():
    return refused({"model": MODEL, "ema": EMA, "ema_slow": near(MODEL, 2)})


@case
def two_averages_that_differ_in_the_last_tensor():
    other = {**EMA, "head.bias": EMA["head.bias"] + 1}
    return refused({"model": MODEL, "ema": EMA, "ema_best": other})


@case
def two_equal_copies():
    return found(
        {"model": MODEL, "ema": EMA, "state_dict_ema": {k: v.clone() for k, v in EMA.items()}}
    )


@case
def two_copies_on_one_storage():
    return found({"model": MODEL, "ema": EMA, "callbacks": {"EMA": {"ema_weights": EMA}}})


@case
def copies_that_differ_in_every_fifth_tensor():
    """As when one of them has other buffers."""
    model = drawn({f"layers.{i}.{part}": (3, 2) for i in range(64) for part in "abcde"})
    one = near(model)
    other = {name: tensor + name.endswith("d") for name, tensor in one.items()}
    return refused({"model": model, "ema": one, "ema_best": other})


@case
def average_in_two_types():
    half = {k: v.half() for k, v in EMA.items()}
    return safe({"model": MODEL, "ema": EMA, "ema_fp16": half})


@case
def rates_as_prefixes():
    content = {
        **under("model.", MODEL),
        **under("ema_0.99.", EMA),
        **under("ema_0.9999.", near(MODEL, 2)),
    }
    return refused({"state_dict": content, "epoch": 1})


@case
def list_of_tracks():
    return refused({"model": MODEL, "ema": [EMA, near(MODEL, 2)]})


@case
def stochastic_and_exponential_averages():
    return refused({"model": MODEL, "ema": EMA, "swa": near(MODEL, 2)})


@case
def swa_that_has_not_begun():
    return refused(
        {"model": MODEL, "swa_model": {"n_averaged": torch.tensor(0), **under("module.", MODEL)}}
    )


# ------------------------------------------------------------------------------ other architectures


@case
def average_of_another_architecture():
    other = drawn(
        {"conv1.weight": (5, 5), "conv2.weight": (5, 2), "fc.weight": (9, 5), "fc.bias": (9,)}
    )
    return refused({"model": MODEL, "ema": other})


@case
def average_of_a_wider_model_with_the_same_names():
    wide = drawn({name: tuple(2 * n for n in shape) for name, shape in SHAPES.items()}, 5)
    return refused({"model": MODEL, "ema": wide})


@case
def average_from_before_the_head_was_exchanged():
    old = near({**MODEL, "head.weight": torch.randn(7, 4), "head.bias": torch.randn(7)})
    return refused({"model": MODEL, "ema": old})


@case
def sharded_average_with_empty_tensors():
    empty = {k: torch.empty(0) if k.startswith("blocks") else v for k, v in EMA.items()}
    return refused({"model": MODEL, "ema": empty})


@case
def average_with_unrelated_values():
    return refused({"model": MODEL, "ema_weights": drawn(seed=9)})


@case
def other_model_in_the_slot_called_shadow():
    both = {**under("image_net.", MODEL), **under("shadow_net.", drawn(seed=9))}
    return refused({"state_dict": both, "epoch": 1})


@case
def other_model_in_the_slot_called_shadow_bare():
    return refused({**under("image_net.", MODEL), **under("shadow_net.", drawn(seed=9))})


# --------------------------------------------------------------------- names in the model that mark

ATTENTION = {
    f"model.{i}.{part}": shape
    for i in (3, 9)
    for part, shape in {
        "ema.conv.weight": (4, 4),
        "ema.conv.bias": (4,),
        "ema.norm.weight": (4,),
        "ema.norm.bias": (4,),
        "cv1.conv.weight": (4, 4),
        "cv1.conv.bias": (4,),
        "cv1.norm.weight": (4,),
        "cv1.norm.bias": (4,),
    }.items()
}


@case
def attention_called_ema():
    return refused({"model": drawn(ATTENTION), "epoch": 1})


@case
def attention_called_ema_bare():
    return refused(drawn(ATTENTION))


@case
def attention_called_ema_with_an_average():
    model = drawn(ATTENTION)
    return found({"model": model, "ema": near(model), "updates": 4}, near(model))


@case
def attention_called_ema_with_an_average_as_prefix():
    model = drawn(ATTENTION)
    both = {**under("net.", model), **under("net_ema.", near(model))}
    return safe({"state_dict": both, "epoch": 1}, under("net.", near(model)))


@case
def attention_called_ema_in_an_average_only():
    return safe({"ema": drawn(ATTENTION)}, drawn(ATTENTION))


@case
def heads_called_average_and_target():
    shapes = {**SHAPES, "avg_head.weight": (2, 4), "avg_head.bias": (2,), "avg_head.scale": ()}
    return refused({"state_dict": drawn(shapes)})


@case
def quantizer_with_averages_of_its_codebook():
    shapes = {
        **SHAPES,
        "vq.embed": (5, 3),
        "vq.embed_avg": (5, 3),
        "vq.cluster_size": (5,),
        "vq.ema_w": (5, 3),
    }
    return refused({"state_dict": drawn(shapes)})


@case
def gates_and_observers():
    shapes = {
        **SHAPES,
        "mega.ema_gate.weight": (4, 4),
        "mega.ema_gate.bias": (4,),
        "moving_average.scale": (1,),
    }
    return refused({"model": drawn(shapes)})


# ----------------------------------------------------------------------------------- several models


def halves() -> tuple[Weights, Weights, Weights, Weights]:
    encoder, decoder = drawn(seed=3), drawn(seed=4)
    return encoder, decoder, near(encoder, 3), near(decoder, 4)


@case
def averages_of_both_halves():
    encoder, decoder, ema_encoder, ema_decoder = halves()
    return refused(
        {
            "encoder": encoder,
            "decoder": decoder,
            "ema_encoder": ema_encoder,
            "ema_decoder": ema_decoder,
        }
    )


@case
def average_of_the_other_half_only():
    encoder, decoder, _, ema_decoder = halves()
    return safe({"encoder": encoder, "decoder": decoder, "decoder_ema": ema_decoder}, ema_decoder)


@case
def average_of_the_other_half_only_and_partial():
    encoder, decoder, _, ema_decoder = halves()
    content = {
        "encoder": encoder,
        "decoder": decoder,
        "decoder_ema": without(ema_decoder, "running"),
    }
    return safe(content, decoder | without(ema_decoder, "running"))


@case
def average_of_the_other_half_in_a_nested_dict():
    encoder, decoder, _, ema_decoder = halves()
    return safe(
        {"models": {"encoder": encoder, "decoder": decoder}, "ema": {"decoder": ema_decoder}},
        ema_decoder,
    )


@case
def averages_of_both_halves_in_nested_dicts():
    encoder, decoder, ema_encoder, ema_decoder = halves()
    return refused(
        {
            "model": {"encoder": encoder, "decoder": decoder},
            "ema": {"encoder": ema_encoder, "decoder": ema_decoder},
        }
    )


@case
def average_of_one_part_without_a_word_which():
    encoder, decoder, _, ema_decoder = halves()
    model = {**under("encoder.", encoder), **under("decoder.", decoder)}
    return safe({"model": model, "ema": ema_decoder}, model | under("decoder.", ema_decoder))


@case
def list_average_of_one_part_without_a_word_which():
    encoder, decoder, _, ema_decoder = halves()
    model = {**under("encoder.", encoder), **under("decoder.", decoder)}
    return safe(
        {"model": model, "ema": {"shadow_params": values(ema_decoder)}},
        model | under("decoder.", ema_decoder),
    )


@case
def average_of_one_part_with_a_word_which():
    encoder, decoder, _, ema_decoder = halves()
    model = {**under("encoder.", encoder), **under("decoder.", decoder)}
    return safe(
        {"model": model, "ema_decoder": ema_decoder}, model | under("decoder.", ema_decoder)
    )


@case
def prefix_average_of_the_second_part():
    encoder, decoder, _, ema_decoder = halves()
    model = {**under("encoder.", encoder), **under("decoder.", decoder)}
    content = {"state_dict": {**model, **under("decoder_ema.", ema_decoder)}}
    return safe(content, model | under("decoder.", ema_decoder))


@case
def generator_and_discriminator():
    generator, discriminator = drawn(seed=3), drawn({**SHAPES, "extra.weight": (40, 40)}, 4)
    return safe(
        {"netD": discriminator, "netG": generator, "netG_ema": near(generator)}, near(generator)
    )


@case
def ensemble_with_one_average():
    members = [drawn(seed=i) for i in range(3)]
    content = {f"member_{i}": member for i, member in enumerate(members)}
    return safe(
        {**content, "member_2_ema": without(near(members[2]), "running")},
        members[2] | without(near(members[2]), "running"),
    )


@case
def ensemble_with_averages():
    members = [drawn(seed=i) for i in range(3)]
    content = {"models": members, "ema": [near(member) for member in members]}
    return refused(content)


@case
def ensemble_inside_one_state_dict():
    members = {f"members.{i}.{name}": t for i in range(3) for name, t in drawn(seed=i).items()}
    return safe({"state_dict": members, "ema_state_dict": near(members)}, near(members))


@case
def average_of_one_member_inside_one_state_dict():
    members = {f"members.{i}.{name}": t for i in range(3) for name, t in drawn(seed=i).items()}
    ema = near(drawn(seed=2))
    return safe({"state_dict": members, "ema_state_dict": ema}, members | under("members.2.", ema))


@case
def member_average_that_fits_a_smaller_twin_better():
    """The tensors that tell the parts apart are frozen, so the average lacks them."""
    small, large = drawn(seed=3), drawn({**SHAPES, "neck.weight": (4, 4)}, 4)
    model = {**under("small.", small), **under("large.", large)}
    ema = without(near(large), "neck")
    return safe({"model": model, "ema": ema}, model | under("large.", ema))


# --------------------------------------------------------------------------------- names and shapes


@case
def dots_removed_with_colliding_names():
    shapes = {
        "blocks.1.0.weight": (3, 3),
        "blocks.10.weight": (3, 3),
        "blocks.2.weight": (3, 3),
        "head.weight": (2, 3),
    }
    model = drawn(shapes)
    flat = {name.replace(".", ""): tensor for name, tensor in near(model).items()}
    return refused({"state_dict": {**under("model.", model), **under("model_ema.", flat)}})


@case
def underscores_with_colliding_names():
    shapes = {
        "a.b_c.weight": (3, 3),
        "a_b.c.weight": (3, 3),
        "stem.weight": (3, 2),
        "head.weight": (2, 3),
    }
    model = drawn(shapes)
    flat = {name.replace(".", "_"): tensor for name, tensor in near(model).items()}
    return refused({"model": model, "ema": flat})


@case
def dots_removed_where_shapes_tell_them_apart():
    shapes = {
        "blocks.1.0.weight": (3, 3),
        "blocks.10.weight": (3, 4),
        "blocks.2.weight": (3, 3),
        "head.weight": (2, 3),
    }
    model = drawn(shapes)
    flat = {n.replace(".", ""): t for n, t in near(model).items() if n != "blocks.10.weight"}
    flat["blocks10weight"] = near(model)["blocks.1.0.weight"]
    return safe({"model": model, "ema": flat}, model | without(near(model), "blocks.10."))


@case
def data_parallel_on_the_model_only():
    return found(
        {"state_dict": under("module.", MODEL), "ema_state_dict": EMA}, under("module.", EMA)
    )


@case
def data_parallel_on_the_average_only():
    return found({"model": MODEL, "model_ema": under("module.", EMA)})


@case
def wrappers_in_the_middle():
    def wrapped(weights: Weights) -> Weights:
        return {
            n.replace("blocks.", "blocks._fsdp_wrapped_module._orig_mod."): t
            for n, t in weights.items()
        }

    return found({"model": wrapped(MODEL), "ema": under("module.", EMA)}, wrapped(EMA))


@case
def wrappers_on_both_sides_in_other_orders():
    return found(
        {"model": under("module._orig_mod.", MODEL), "ema": under("_orig_mod.module.", EMA)},
        under("module._orig_mod.", EMA),
    )


@case
def a_layer_called_module():
    both = {**under("module.", drawn(seed=3)), **drawn(seed=4)}
    return safe({"model": both, "ema": near(both)}, near(both))


@case
def names_in_another_order():
    return found({"model": MODEL, "ema": dict(reversed(EMA.items()))})


@case
def names_that_differ_by_case():
    model = drawn({"A.weight": (3, 3), "a.weight": (3, 3), "B.weight": (3, 2), "b.weight": (3, 2)})
    return found({"model": model, "ema": near(model)}, near(model))


@case
def unrelated_prefixes_with_equal_tails():
    """Every layer ends alike; only the whole prefix pairs them rightly."""
    model = drawn({f"net.{i}.{j}.weight": (3, 3) for i in range(4) for j in range(4)})
    ema = {f"ema_net.{name.removeprefix('net.')}": t for name, t in near(model).items()}
    return safe({"model": model, "ema": ema}, near(model))


@case
def average_whose_numbers_are_shifted():
    """A Sequential with one module more before: the same names mean other layers."""
    model = drawn({f"layers.{i}.weight": (3, 3) for i in range(6)})
    shifted = {f"layers.{i + 1}.weight": t for i, t in enumerate(near(model).values())}
    return safe({"model": model, "ema": shifted}, near(model))


# ----------------------------------------------------------------------------------------- oddities


@case
def average_only():
    return found({"ema_state_dict": EMA, "epoch": 3})


@case
def average_only_in_data_parallel():
    return safe({"ema": under("module.", EMA)}, under("module.", EMA))


@case
def empty_average():
    return refused({"model": MODEL, "ema": {}})


@case
def empty_list_as_average():
    return refused({"model": MODEL, "ema": {"shadow_params": []}})


@case
def empty_model():
    return safe({"model": {}, "ema": EMA})


@case
def average_of_none():
    return refused({"model": MODEL, "ema": None, "ema_state_dict": None})


@case
def scalars_only():
    model = {name: torch.tensor(float(i)) for i, name in enumerate("abcdef", 1)}
    return safe({"model": model, "ema": near(model)}, near(model))


@case
def scalars_called_like_counters():
    model = {
        name: torch.tensor(float(i)) for i, name in enumerate(("step", "decay", "count", "w"), 1)
    }
    return safe({"model": model, "ema": near(model)}, near(model))


@case
def single_tensor():
    model = {"weight": torch.randn(3, 3)}
    return safe({"model": model, "ema": near(model)}, near(model))


@case
def half_precision_average():
    half = {name: tensor.half() for name, tensor in EMA.items()}
    return found({"model": MODEL, "ema": half}, half)


@case
def bfloat16_average():
    half = {name: tensor.bfloat16() for name, tensor in EMA.items()}
    return found({"model": MODEL, "ema": half}, half)


@case
def double_average_of_a_half_model():
    model = {name: tensor.half() for name, tensor in MODEL.items()}
    ema = near({name: tensor.double() for name, tensor in model.items()})
    return found({"model": model, "ema": ema}, ema)


@case
def integers_in_the_average():
    model = {**MODEL, "norm.num_batches_tracked": torch.tensor(12), "index": torch.arange(4)}
    ema = {**EMA, "norm.num_batches_tracked": torch.tensor(11), "index": torch.arange(4)}
    return found({"model": model, "ema": ema}, ema)


@case
def complex_average():
    model = {f"w{i}": torch.randn(3, 2, dtype=torch.complex64) for i in range(4)}
    ema = {name: tensor * 0.97 for name, tensor in model.items()}
    return safe({"model": model, "ema": ema}, ema)


@case
def zeros_in_model_and_average():
    model = {**MODEL, "stem.bias": torch.zeros(4), "head.bias": torch.zeros(2)}
    return found({"model": model, "ema": near(model)}, near(model))


@case
def not_a_number_at_the_end():
    model = drawn({**SHAPES, "big.weight": (100, 100)})
    ema = near(model)
    ema["big.weight"][99, 99] = float("nan")
    return refused({"model": model, "ema": ema})


@case
def tied_average_of_untied_weights():
    ema = dict(EMA)
    ema["blocks.1.weight"] = ema["blocks.0.weight"]
    return found({"model": MODEL, "ema": ema}, ema)


@case
def transposed_average():
    ema = {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in EMA.items()}
    return found({"model": MODEL, "ema": ema}, EMA)


# -------------------------------------------------------------------------------------------- lists


@case
def list_of_all_parameters():
    names = without(MODEL, "running")
    return found(
        {"model": MODEL, "ema": {"shadow_params": [EMA[n] for n in names]}},
        MODEL | {n: EMA[n] for n in names},
    )


@case
def list_without_frozen_parameters():
    names = without(MODEL, "running", "blocks.0")
    return found(
        {"model": MODEL, "ema": {"shadow_params": [EMA[n] for n in names]}},
        MODEL | {n: EMA[n] for n in names},
    )


@case
def list_with_buffers():
    return found({"model": MODEL, "callbacks": {"EMA": {"ema_weights": values(EMA)}}})


@case
def list_in_the_order_of_decay_groups():
    names = [n for n in MODEL if n.endswith("weight")] + [n for n in MODEL if n.endswith("bias")]
    return safe(
        {"model": MODEL, "ema": {"shadow_params": [EMA[n] for n in names]}},
        MODEL | {n: EMA[n] for n in names},
    )


@case
def list_in_alphabetical_order():
    names = sorted(without(MODEL, "running"))
    return safe(
        {"model": MODEL, "ema": {"shadow_params": [EMA[n] for n in names]}},
        MODEL | {n: EMA[n] for n in names},
    )


@case
def list_backwards():
    model = drawn({f"layers.{i}.weight": (3, 3) for i in range(6)})
    return safe({"model": model, "ema": values(near(model))[::-1]}, near(model))


@case
def list_with_two_layers_exchanged():
    model = drawn({f"layers.{i}.weight": (3, 3) for i in range(6)})
    ema = values(near(model))
    ema[2], ema[3] = ema[3], ema[2]
    return safe({"model": model, "ema": ema}, near(model))


@case
def list_of_equal_layers_one_frozen():
    model = {f"layers.{i}.weight": torch.ones(3, 3) for i in range(6)}
    return refused(
        {
            "model": model,
            "ema": {"shadow_params": [torch.ones(3, 3) * (1 + i / 100) for i in range(5)]},
        }
    )


@case
def list_of_another_model():
    return refused(
        {"model": MODEL, "ema": {"shadow_params": values(without(drawn(seed=9), "running"))}}
    )


@case
def list_of_another_model_whose_shapes_are_unique():
    shapes = {f"layers.{i}.weight": (i + 2, 3) for i in range(5)}
    return refused({"model": drawn(shapes), "ema_params": values(drawn(shapes, 9))})


@case
def numbered_names():
    names = list(without(MODEL, "running"))
    numbered = {f"ema_weight_{i}": EMA[n] for i, n in enumerate(names)}
    return found(
        {"state_dict": {**under("model.", MODEL), **under("ema.", numbered)}},
        under("model.", MODEL | {n: EMA[n] for n in names}),
    )


@case
def numbered_names_with_gaps():
    names = list(without(MODEL, "running"))
    numbered = {
        f"shadow_params.{i}": EMA[n] for i, n in enumerate(names) if not n.startswith("blocks.0")
    }
    return safe(
        {"model": MODEL, "ema": numbered},
        MODEL | {n: EMA[n] for n in names if not n.startswith("blocks.0")},
    )


# ------------------------------------------------------------------------------ parts and renamings


@case
def weight_norm_removed_in_the_average():
    """imaginaire: the averaged copy has ``weight`` where the model has ``weight_orig``."""
    model = drawn(
        {f"conv{i}.{n}": s for i in range(4) for n, s in (("weight_orig", (3, 3)), ("bias", (3,)))}
    )
    ema = {name.replace("_orig", ""): tensor for name, tensor in near(model).items()}
    return safe({"net_G": {**under("module.", model), **under("averaged_model.", ema)}})


@case
def weight_norm_removed_in_a_table():
    model = drawn(
        {f"conv{i}.{n}": s for i in range(4) for n, s in (("weight_v", (3, 3)), ("bias", (3,)))}
    )
    ema = {name.replace("_v", ""): tensor for name, tensor in near(model).items()}
    return refused({"model": model, "ema": ema})


@case
def half_of_the_layers_renamed():
    ema = {name.replace("blocks.1", "layers.1"): tensor for name, tensor in EMA.items()}
    return refused({"model": MODEL, "ema": ema})


@case
def several_models_in_one_average():
    """imagen: ``0.ema_model.`` is ``unets.0.``."""
    one, two = drawn(seed=3), drawn({f"wide.{n}": (*s, 2) for n, s in SHAPES.items()}, 4)
    model = {**under("unets.0.", one), **under("unets.1.", two)}
    ema = {**under("0.ema_model.", near(one)), **under("1.ema_model.", near(two))}
    answer = {**under("unets.0.", near(one)), **under("unets.1.", near(two))}
    return safe({"model": model, "ema": ema}, answer)


@case
def several_equal_models_in_one_average():
    one, two = drawn(seed=3), drawn(seed=4)
    model = {**under("unets.0.", one), **under("unets.1.", two)}
    ema = {**under("0.ema_model.", near(one)), **under("1.ema_model.", near(two))}
    answer = {**under("unets.0.", near(one)), **under("unets.1.", near(two))}
    return safe({"model": model, "ema": ema}, answer)


@case
def a_part_of_the_model_by_nested_prefixes():
    """stable-audio-tools: ``diffusion_ema.ema_model.`` averages ``diffusion.model.``."""
    model = {**under("diffusion.model.", MODEL), **under("pretransform.", drawn({"w": (7, 7)}))}
    ema = {"diffusion_ema.step": torch.tensor(3), **under("diffusion_ema.ema_model.", EMA)}
    return found({"state_dict": {**model, **ema}}, model | under("diffusion.model.", EMA))


@case
def a_part_of_the_model_by_nested_prefixes_with_a_raw_copy():
    raw = under("diffusion.model.", MODEL)
    copy = under("diffusion_ema.online_model.", MODEL)
    ema = under("diffusion_ema.ema_model.", EMA)
    return safe({"state_dict": {**raw, **copy, **ema}}, {**under("diffusion.model.", EMA), **copy})


@case
def average_split_like_the_model():
    encoder, decoder, ema_encoder, ema_decoder = halves()
    model = {**under("encoder.", encoder), **under("decoder.", decoder)}
    answer = {**under("encoder.", ema_encoder), **under("decoder.", ema_decoder)}
    return safe({"model": model, "ema": {"encoder": ema_encoder, "decoder": ema_decoder}}, answer)


@case
def prefix_average_of_one_of_two_equal_branches():
    one, two = drawn(seed=3), drawn(seed=4)
    both = {**under("left.", one), **under("right.", two), **under("ema.", near(two))}
    answer = {**under("left.", one), **under("right.", near(two))}
    return safe({"state_dict": both, "epoch": 1}, answer)


@case
def student_teacher_and_average_in_one_table():
    teacher, student = drawn(seed=3), drawn(seed=4)
    both = {**under("teacher.", teacher), **under("student.", student)}
    return safe(
        {"state_dict": {**both, **under("student_ema.", near(student))}},
        under("student.", near(student)),  # without the teacher, which is another model
    )


@case
def generator_without_a_word_beside_its_discriminator():
    shared = {"conv1.weight": (4, 4), "conv1.bias": (4,), "conv2.weight": (4, 4)}
    generator = drawn({**shared, "to_rgb.weight": (3, 4)}, 3)
    discriminator = drawn({**shared, "final.weight": (9, 9)}, 4)
    return safe({"netG": generator, "netD": discriminator, "ema": near(generator)}, near(generator))


@case
def average_in_the_module_of_a_wrapper():
    ema = {"module": {**under("module.", EMA)}, "decay": 0.9, "updates": 3}
    return found({"model": under("module.", MODEL), "ema": ema}, under("module.", EMA))


@case
def norms_that_have_hardly_moved():
    """Frozen norms are nearer to the average of trained ones than these are themselves."""
    ones = {f"norms.{i}.weight": torch.ones(4) for i in range(3)}
    model = {**ones, "norms.1.weight": torch.full((4,), 1.02)}
    return safe(
        {"model": model, "ema": {"shadow_params": [torch.full((4,), 1.001)]}},
        {**model, "norms.1.weight": torch.full((4,), 1.001)},
    )


@case
def norms_and_biases_that_have_hardly_moved():
    generator = torch.Generator().manual_seed(2)

    def moved(value: float, by: float) -> Tensor:
        return torch.full((4,), value) + by * torch.randn(4, generator=generator)

    model, ema = {}, {}
    for i in range(6):
        step = 0.0 if i % 3 == 2 else 0.02  # every third block is frozen
        model |= {f"{i}.norm.weight": moved(1, step), f"{i}.norm.bias": moved(0, step)}
        ema |= {n: model[n] * 0.3 + 0.7 * round(float(model[n].mean())) for n in list(model)[-2:]}
    kept = [name for name in model if int(name[0]) % 3 != 2]
    answer = model | {name: ema[name] for name in kept}
    return safe({"model": model, "ema": {"shadow_params": [ema[n] for n in kept]}}, answer)


@case
def quantized_average():
    ema = {name: (tensor * 50).to(torch.int8) for name, tensor in MODEL.items()}
    return refused({"model": MODEL, "ema": ema})


@case
def masks_called_ema():
    ema = {name: tensor > 0 for name, tensor in MODEL.items()}
    return refused({"model": MODEL, "ema_mask": ema})


@case
def norms_of_gradients_called_ema():
    ema = {name: tensor.norm() for name, tensor in MODEL.items()}
    return refused({"model": MODEL, "grad_norm_ema": ema})


@case
def variances_called_averages():
    ema = {name: tensor**2 for name, tensor in drawn(seed=3).items()}
    return refused({"model": MODEL, "swa_sq_mean": ema})


@case
def deviations_beside_an_average():
    """SWAG keeps the mean and the mean of squares."""
    squares = {name: tensor**2 for name, tensor in EMA.items()}
    return safe({"model": MODEL, "swa": {"mean": EMA, "sq_mean": squares}})


@case
def differences_from_the_model():
    ema = {name: EMA[name] - MODEL[name] for name in MODEL}
    return refused({"model": MODEL, "ema_delta": ema})


@case
def zeros_that_wait_for_the_first_update():
    return refused(
        {"model": MODEL, "ema": {name: torch.zeros_like(t) for name, t in MODEL.items()}}
    )


@case
def best_and_last_model():
    return safe({"state_dict": near(MODEL, 2), "model": MODEL, "model_ema": EMA})


# ------------------------------------------------------------------------------- optimizers' states


def adam(model: Weights) -> dict:
    state = {
        i: {"step": torch.tensor(5.0), "exp_avg": t * 0.01, "exp_avg_sq": t**2}
        for i, t in enumerate(model.values())
    }
    return {"state": state, "param_groups": [{"lr": 0.1, "params": list(state)}]}


@case
def adam_alone():
    return refused({"model": MODEL, "optimizer": adam(MODEL)})


@case
def moments_by_name():
    return refused({"model": MODEL, "exp_avg": {n: t * 0.01 for n, t in EMA.items()}})


@case
def moments_by_name_in_an_odd_optimizer():
    moments = {
        "exp_avg": {n: t * 0.01 for n, t in EMA.items()},
        "exp_avg_sq": {n: t**2 for n, t in EMA.items()},
    }
    return refused({"model": MODEL, "optimizer": moments})


@case
def moments_as_a_list():
    shapes = {f"layers.{i}.weight": (i + 2, 3) for i in range(5)}
    return refused(
        {"model": drawn(shapes), "lion": {"exp_avg": [t * 0.01 for t in drawn(shapes, 2).values()]}}
    )


@case
def momentum_by_name():
    return refused({"model": MODEL, "momentum": {n: t * 0.01 for n, t in EMA.items()}})


@case
def averaged_gradients_by_name():
    return refused({"model": MODEL, "grad_ema": {n: t * 0.001 for n, t in drawn(seed=2).items()}})


@case
def averaged_squares_by_name():
    return refused({"model": MODEL, "fisher_ema": {n: t**2 for n, t in drawn(seed=2).items()}})


@case
def average_beside_moments_by_name():
    moments = {n: t * 0.01 for n, t in drawn(seed=2).items()}
    return safe({"model": MODEL, "ema": EMA, "exp_avg": moments})


@case
def average_inside_an_optimizer():
    optimizer = adam(MODEL)
    for state, ema in zip(optimizer["state"].values(), EMA.values(), strict=True):
        state["ema"] = ema
    return safe({"model": MODEL, "optimizer": optimizer})


@case
def teacher_and_average():
    return safe({"model": MODEL, "ema": EMA, "teacher": drawn(seed=9)})


@case
def target_network_beside():
    return refused({**under("q_net.", MODEL), **under("q_net_target.", EMA)})


@case
def momentum_encoder_beside():
    return refused({"state_dict": {**under("encoder.", MODEL), **under("momentum_encoder.", EMA)}})


# -------------------------------------------------------------------------------------------- files


@case
def twin_file():
    return found(Files({"last.pt": {"model": MODEL}, "last_ema.pt": {"model": EMA}}))


@case
def twin_file_that_holds_both():
    return safe(
        Files({"last.pt": {"model": MODEL}, "last_ema.pt": {"model": near(MODEL, 2), "ema": EMA}})
    )


@case
def twin_file_that_holds_both_in_one_table():
    both = {**under("model.", near(MODEL, 2)), **under("model_ema.", EMA)}
    model = under("model.", MODEL)
    return safe(
        Files({"last.pt": {"state_dict": model}, "last_ema.pt": {"state_dict": both}}),
        under("model.", EMA),
    )


@case
def twin_file_of_a_swapping_writer():
    ema = {"steps": torch.tensor(9), **under("module.", near(MODEL, 2))}
    twin = {"meta": {}, "message_hub": {}, "state_dict": EMA, "ema_state_dict": ema}
    return safe(Files({"last.pt": {"state_dict": MODEL}, "last_ema.pt": twin}))


@case
def twin_file_of_unrelated_values():
    return refused(Files({"last.pt": {"model": MODEL}, "last_ema.pt": {"model": drawn(seed=9)}}))


@case
def twin_file_of_another_architecture():
    other = drawn({"fc.weight": (3, 3), "fc.bias": (3,), "out.weight": (2, 3)})
    return refused(Files({"last.pt": {"model": MODEL}, "last_ema.pt": {"model": other}}))


@case
def twin_files_with_two_rates():
    return refused(
        Files(
            {
                "model000005.pt": MODEL,
                "ema_0.9_000005.pt": EMA,
                "ema_0.99_000005.pt": near(MODEL, 2),
                "last.pt": "model000005.pt",
            }
        )
    )


@case
def twin_file_beside_an_average_inside():
    return safe(
        Files({"last.pt": {"model": MODEL, "ema": EMA}, "last_ema.pt": {"model": near(MODEL, 2)}})
    )


# -------------------------------------------------------------------------------------------- tests


def written(content: Any, folder: Path) -> Path:
    if not isinstance(content, Files):
        return save(folder / "last.pt", content)
    for name, part in content.items():
        if not isinstance(part, str):
            save(folder / name, part)
    asked = content["last.pt"]
    return folder / (asked if isinstance(asked, str) else "last.pt")


@pytest.mark.parametrize("name", CASES)
def test_what_is_extracted_is_the_average(name, ckptool, tmp_path):
    content, answer, verdict = CASES[name]()
    path, output = written(content, tmp_path / "run"), tmp_path / "ema.pt"
    done = ckptool("extract-ema", path, "-o", output)
    if done.exit_code == 0:
        assert verdict != REFUSED, "taken, though nothing here is an average"
        assert_same_tensors(load(output), answer)
        return
    assert done.exit_code == 2
    assert verdict != FOUND, done.stderr
    assert not output.exists()
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize("name", CASES)
def test_what_is_promoted_is_the_average(name, ckptool, tmp_path):
    content, answer, verdict = CASES[name]()
    path, output = written(content, tmp_path / "run"), tmp_path / "promoted.pt"
    done = ckptool("promote-ema", path, "-o", output, "--json")
    if done.exit_code:
        assert done.exit_code == 2
        assert not output.exists()
        return
    assert verdict != REFUSED, "promoted, though nothing here is an average"
    before, after = slot(load(path), done.json["model"]), slot(load(output), done.json["model"])
    for tensor_name, tensor in answer.items():
        assert torch.equal(after[tensor_name], tensor.to(after[tensor_name].dtype)), tensor_name
    assert is_average_of(after, before)


def slot(content: Any, address: str) -> Any:
    for key in address.split("/") if address else ():
        content = content[int(key) if isinstance(content, list) else key]
    return content


def is_average_of(average: Weights, model: Weights) -> bool:
    """Whether the values are near: an average of another model is not."""
    raw = [model[n].flatten().abs().float() for n in model if n in average]
    off = [(average[n] - model[n]).flatten().abs().float() for n in model if n in average]
    return bool(torch.cat(off).norm() < 0.9 * torch.cat(raw).norm())

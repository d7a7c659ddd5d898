"""Conversions of models as public projects do them, with small weights.

Each function returns the state dict of the one project, that of the other, and the names that no
copy, cast, cut, join or transpose explains. The projects are named with what they do to the names
and shapes; none of their code is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

HIDDEN, LAYERS, HEADS, EXPERTS, VOCABULARY = 8, 3, 2, 4, 24
Weights = dict[str, Tensor]


class Conversion(NamedTuple):
    """What went in and what came out."""

    source: Weights
    result: Weights
    unexplained: frozenset[str] = frozenset()
    doubled: frozenset[str] = frozenset()  # a tensor that stands there twice


_generator = torch.Generator()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


def seeded(make: Callable[[], Conversion]) -> Callable[[], Conversion]:
    """The same function, whose values are the same with each call."""

    @wraps(make)
    def run() -> Conversion:
        _generator.manual_seed(len(make.__name__))
        return make()

    return run


def each_layer(make: Callable[[int], tuple[Weights, Weights]]) -> tuple[Weights, Weights]:
    source: Weights = {}
    result: Weights = {}
    for at in range(LAYERS):
        ours, theirs = make(at)
        source |= ours
        result |= theirs
    return source, result


def renamed(weights: Mapping[str, Tensor], *pairs: tuple[str, str]) -> Weights:
    made: Weights = {}
    for name, tensor in weights.items():
        for old, new in pairs:
            name = name.replace(old, new)  # noqa: PLW2901
        made[name] = tensor.clone()
    return made


def gpt2_to_separate_linears() -> Conversion:
    """GPT-2's Conv1D (in, out) with fused c_attn -> Linear with q, k, v."""

    def layer(at: int) -> tuple[Weights, Weights]:
        old, new = f"transformer.h.{at}", f"model.layers.{at}"
        ours = {
            f"{old}.ln_1.weight": torch.ones(HIDDEN), f"{old}.ln_1.bias": torch.zeros(HIDDEN),
            f"{old}.attn.c_attn.weight": random(HIDDEN, 3 * HIDDEN),
            f"{old}.attn.c_attn.bias": torch.zeros(3 * HIDDEN),
            f"{old}.attn.c_proj.weight": random(HIDDEN, HIDDEN),
            f"{old}.mlp.c_fc.weight": random(HIDDEN, 4 * HIDDEN),
            f"{old}.mlp.c_proj.weight": random(4 * HIDDEN, HIDDEN),
        }  # fmt: skip
        theirs = {
            f"{new}.norm.weight": ours[f"{old}.ln_1.weight"].clone(),
            f"{new}.norm.bias": ours[f"{old}.ln_1.bias"].clone(),
            f"{new}.attn.o.weight": ours[f"{old}.attn.c_proj.weight"].t().contiguous(),
            f"{new}.mlp.up.weight": ours[f"{old}.mlp.c_fc.weight"].t().contiguous(),
            f"{new}.mlp.down.weight": ours[f"{old}.mlp.c_proj.weight"].t().contiguous(),
        }
        for letter, weight, bias in zip(
            "qkv", ours[f"{old}.attn.c_attn.weight"].chunk(3, 1),
            ours[f"{old}.attn.c_attn.bias"].chunk(3), strict=True,
        ):  # fmt: skip
            theirs[f"{new}.attn.{letter}.weight"] = weight.t().contiguous()
            theirs[f"{new}.attn.{letter}.bias"] = bias.clone()
        return ours, theirs

    source, result = each_layer(layer)
    source |= {"transformer.wte.weight": random(VOCABULARY, HIDDEN)}
    result |= {"model.embed.weight": source["transformer.wte.weight"].clone()}
    return Conversion(source, result)


def timm_vit_to_transformers() -> Conversion:
    """timm's fused qkv (3 H, H) -> query, key and value."""

    def layer(at: int) -> tuple[Weights, Weights]:
        old, new = f"blocks.{at}", f"vit.encoder.layer.{at}"
        ours = {
            f"{old}.norm1.weight": random(HIDDEN),
            f"{old}.attn.qkv.weight": random(3 * HIDDEN, HIDDEN),
            f"{old}.attn.qkv.bias": random(3 * HIDDEN),
            f"{old}.attn.proj.weight": random(HIDDEN, HIDDEN),
            f"{old}.mlp.fc1.weight": random(4 * HIDDEN, HIDDEN),
        }
        theirs = {
            f"{new}.layernorm_before.weight": ours[f"{old}.norm1.weight"].clone(),
            f"{new}.attention.output.dense.weight": ours[f"{old}.attn.proj.weight"].clone(),
            f"{new}.intermediate.dense.weight": ours[f"{old}.mlp.fc1.weight"].clone(),
        }
        for kind in ("weight", "bias"):
            parts = ours[f"{old}.attn.qkv.{kind}"].chunk(3)
            for word, part in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"{new}.attention.attention.{word}.{kind}"] = part.clone()
        return ours, theirs

    source, result = each_layer(layer)
    source |= {"head.weight": random(5, HIDDEN), "cls_token": random(1, 1, HIDDEN)}
    result |= {
        "classifier.weight": source["head.weight"].clone(),
        "vit.embeddings.cls_token": source["cls_token"].clone(),
    }
    return Conversion(source, result)


def transformers_vit_to_timm() -> Conversion:
    """Query, key and value joined again."""
    conversion = timm_vit_to_transformers()
    return Conversion(conversion.result, conversion.source)


def llama_to_fused() -> Conversion:
    """q, k, v (grouped queries) and gate, up -> qkv_proj and gate_up_proj, as vLLM holds them."""

    def layer(at: int) -> tuple[Weights, Weights]:
        base = f"model.layers.{at}"
        ours = {
            f"{base}.self_attn.q_proj.weight": random(HIDDEN, HIDDEN),
            f"{base}.self_attn.k_proj.weight": random(HIDDEN // 2, HIDDEN),
            f"{base}.self_attn.v_proj.weight": random(HIDDEN // 2, HIDDEN),
            f"{base}.self_attn.o_proj.weight": random(HIDDEN, HIDDEN),
            f"{base}.mlp.gate_proj.weight": random(3 * HIDDEN, HIDDEN),
            f"{base}.mlp.up_proj.weight": random(3 * HIDDEN, HIDDEN),
            f"{base}.mlp.down_proj.weight": random(HIDDEN, 3 * HIDDEN),
            f"{base}.input_layernorm.weight": torch.ones(HIDDEN),
            f"{base}.post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
        kept = ("o_proj", "down_proj", "layernorm")
        theirs = {n: t.clone() for n, t in ours.items() if any(word in n for word in kept)}
        qkv = [ours[f"{base}.self_attn.{x}_proj.weight"] for x in "qkv"]
        gate_up = [ours[f"{base}.mlp.{x}_proj.weight"] for x in ("gate", "up")]
        theirs[f"{base}.self_attn.qkv_proj.weight"] = torch.cat(qkv)
        theirs[f"{base}.mlp.gate_up_proj.weight"] = torch.cat(gate_up)
        return ours, theirs

    source, result = each_layer(layer)
    source |= {"lm_head.weight": random(VOCABULARY, HIDDEN)}
    result |= {"lm_head.weight": source["lm_head.weight"].clone()}
    return Conversion(source, result)


def fused_to_llama() -> Conversion:
    """The fused projections of Phi-3 and InternLM, taken apart."""
    conversion = llama_to_fused()
    return Conversion(conversion.result, conversion.source)


def _experts(at: int) -> Weights:
    base = f"model.layers.{at}.block_sparse_moe"
    made = {f"{base}.gate.weight": random(EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        made |= {
            f"{base}.experts.{expert}.w1.weight": random(2 * HIDDEN, HIDDEN),
            f"{base}.experts.{expert}.w2.weight": random(HIDDEN, 2 * HIDDEN),
            f"{base}.experts.{expert}.w3.weight": random(2 * HIDDEN, HIDDEN),
        }
    return made


def mixtral_to_stacked() -> Conversion:
    """Experts one by one -> gate_up (E, 2 F, H) and down (E, H, F), as in transformers 5."""

    def layer(at: int) -> tuple[Weights, Weights]:
        ours = _experts(at)
        old, new = f"model.layers.{at}.block_sparse_moe", f"model.layers.{at}.mlp"
        one = [
            torch.cat([ours[f"{old}.experts.{e}.w{n}.weight"] for n in (1, 3)])
            for e in range(EXPERTS)
        ]
        down = [ours[f"{old}.experts.{e}.w2.weight"] for e in range(EXPERTS)]
        return ours, {
            f"{new}.gate.weight": ours[f"{old}.gate.weight"].clone(),
            f"{new}.experts.gate_up_proj": torch.stack(one),
            f"{new}.experts.down_proj": torch.stack(down),
        }

    return Conversion(*each_layer(layer))


def stacked_to_mixtral() -> Conversion:
    """The same backwards."""
    conversion = mixtral_to_stacked()
    return Conversion(conversion.result, conversion.source)


def experts_to_stacked_transposes() -> Conversion:
    """Experts -> (E, H, F), which a grouped matrix product takes, as in Llama 4 and gpt-oss."""

    def layer(at: int) -> tuple[Weights, Weights]:
        ours = _experts(at)
        old, new = f"model.layers.{at}.block_sparse_moe", f"layers.{at}.moe"
        return ours, {
            f"{new}.router": ours[f"{old}.gate.weight"].t().contiguous(),
            **{
                f"{new}.w{n}": torch.stack(
                    [ours[f"{old}.experts.{e}.w{n}.weight"].t() for e in range(EXPERTS)]
                )
                for n in (1, 2, 3)
            },
        }

    return Conversion(*each_layer(layer))


def openclip_to_transformers() -> Conversion:
    """in_proj_weight of nn.MultiheadAttention -> q, k, v; a projection that is used transposed."""

    def layer(at: int) -> tuple[Weights, Weights]:
        old, new = f"transformer.resblocks.{at}", f"text_model.encoder.layers.{at}"
        ours = {
            f"{old}.attn.in_proj_weight": random(3 * HIDDEN, HIDDEN),
            f"{old}.attn.in_proj_bias": random(3 * HIDDEN),
            f"{old}.attn.out_proj.weight": random(HIDDEN, HIDDEN),
            f"{old}.ln_1.weight": random(HIDDEN),
        }
        theirs = {
            f"{new}.self_attn.out_proj.weight": ours[f"{old}.attn.out_proj.weight"].clone(),
            f"{new}.layer_norm1.weight": ours[f"{old}.ln_1.weight"].clone(),
        }
        for kind in ("weight", "bias"):
            parts = ours[f"{old}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                theirs[f"{new}.self_attn.{letter}_proj.{kind}"] = part.clone()
        return ours, theirs

    source, result = each_layer(layer)
    source |= {
        "text_projection": random(HIDDEN, HIDDEN // 2), "logit_scale": torch.tensor(4.6),
        "attn_mask": torch.full((6, 6), float("-inf")).triu(1),
    }  # fmt: skip
    result |= {
        "text_projection.weight": source["text_projection"].t().contiguous(),
        "logit_scale": source["logit_scale"].clone(),
    }
    return Conversion(source, result)


def bert_of_tensorflow() -> Conversion:
    """kernel (in, out), gamma and beta -> weight, LayerNorm.weight and LayerNorm.bias."""

    def layer(at: int) -> tuple[Weights, Weights]:
        old, new = f"bert/encoder/layer_{at}", f"bert.encoder.layer.{at}"
        ours = {
            **{f"{old}/attention/self/{w}/kernel": random(HIDDEN, HIDDEN)
               for w in ("query", "key", "value")},
            f"{old}/intermediate/dense/kernel": random(HIDDEN, 4 * HIDDEN),
            f"{old}/output/LayerNorm/gamma": random(HIDDEN),
            f"{old}/output/LayerNorm/beta": random(HIDDEN),
        }  # fmt: skip
        pairs = ((f"{old}/", f"{new}."), ("/", "."), ("kernel", "weight"), ("gamma", "weight"),
                 ("beta", "bias"))  # fmt: skip
        theirs = renamed(ours, *pairs)
        return ours, {
            name: tensor.t().contiguous() if tensor.dim() == 2 else tensor
            for name, tensor in theirs.items()
        }

    return Conversion(*each_layer(layer))


def latent_diffusion_to_diffusers() -> Conversion:
    """Other names for convolutions, norms and attentions, in half precision."""

    def layer(at: int) -> tuple[Weights, Weights]:
        old = f"model.diffusion_model.input_blocks.{at}"
        ours = {
            f"{old}.0.in_layers.0.weight": random(HIDDEN),
            f"{old}.0.in_layers.2.weight": random(HIDDEN, HIDDEN, 3, 3),
            f"{old}.0.emb_layers.1.weight": random(HIDDEN, 2 * HIDDEN),
            f"{old}.1.transformer_blocks.0.attn1.to_q.weight": random(HIDDEN, HIDDEN),
            f"{old}.1.proj_in.weight": random(HIDDEN, HIDDEN, 1, 1),
        }
        theirs = renamed(
            ours,
            (f"{old}.0.in_layers.0", f"down_blocks.0.resnets.{at}.norm1"),
            (f"{old}.0.in_layers.2", f"down_blocks.0.resnets.{at}.conv1"),
            (f"{old}.0.emb_layers.1", f"down_blocks.0.resnets.{at}.time_emb_proj"),
            (f"{old}.1", f"down_blocks.0.attentions.{at}"),
        )
        return ours, {name: tensor.half() for name, tensor in theirs.items()}

    return Conversion(*each_layer(layer))


def whisper_to_transformers() -> Conversion:
    """Other names, and an output layer that is written once more though it is tied."""

    def layer(at: int) -> tuple[Weights, Weights]:
        ours = {
            f"decoder.blocks.{at}.attn.query.weight": random(HIDDEN, HIDDEN),
            f"decoder.blocks.{at}.attn.key.weight": random(HIDDEN, HIDDEN),
            f"decoder.blocks.{at}.attn.query.bias": torch.zeros(HIDDEN),
            f"decoder.blocks.{at}.mlp.0.weight": random(4 * HIDDEN, HIDDEN),
        }
        pairs = (("blocks", "layers"), ("attn.query", "self_attn.q_proj"),
                 ("attn.key", "self_attn.k_proj"), ("mlp.0", "fc1"))  # fmt: skip
        return ours, renamed(ours, *((a, b) for a, b in pairs))

    source, result = each_layer(layer)
    source |= {"decoder.token_embedding.weight": random(VOCABULARY, HIDDEN)}
    embedding = source["decoder.token_embedding.weight"]
    result |= {
        "decoder.embed_tokens.weight": embedding.clone(),
        "proj_out.weight": embedding.clone(),
    }
    return Conversion(source, result, doubled=frozenset({"proj_out.weight"}))


def padded_vocabulary() -> Conversion:
    """Megatron's embedding is padded; the rows behind the vocabulary are cut off. In bfloat16."""

    def layer(at: int) -> tuple[Weights, Weights]:
        old, new = f"language_model.encoder.layers.{at}", f"h.{at}"
        ours = {f"{old}.mlp.dense_h_to_4h.weight": random(4 * HIDDEN, HIDDEN),
                f"{old}.input_layernorm.weight": random(HIDDEN)}  # fmt: skip
        return ours, renamed(ours, (old, new), ("dense_h_to_4h", "fc_in"))

    source, result = each_layer(layer)
    source |= {"language_model.embedding.word_embeddings.weight": random(VOCABULARY + 8, HIDDEN)}
    padded = source["language_model.embedding.word_embeddings.weight"]
    result |= {"wte.weight": padded[:VOCABULARY].clone()}
    return Conversion(source, {name: tensor.bfloat16() for name, tensor in result.items()})


def llama_of_meta() -> Conversion:
    """wq and wk have the halves of each head interleaved: the one thing that is arithmetic here."""

    def permuted(weight: Tensor) -> Tensor:
        return weight.view(HEADS, 2, HIDDEN // HEADS // 2, HIDDEN).transpose(1, 2).reshape(
            HIDDEN, HIDDEN)  # fmt: skip

    def layer(at: int) -> tuple[Weights, Weights]:
        ours = {f"layers.{at}.attention.w{x}.weight": random(HIDDEN, HIDDEN) for x in "qkvo"}
        ours |= {
            f"layers.{at}.feed_forward.w{n}.weight": random(3 * HIDDEN, HIDDEN) for n in (1, 3)
        }
        ours |= {f"layers.{at}.feed_forward.w2.weight": random(HIDDEN, 3 * HIDDEN)}
        base = f"model.layers.{at}"
        words = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
        theirs = {
            f"{base}.self_attn.{x}_proj.weight": ours[f"layers.{at}.attention.w{x}.weight"].clone()
            for x in "vo"
        }
        theirs |= {
            f"{base}.self_attn.{x}_proj.weight": permuted(
                ours[f"layers.{at}.attention.w{x}.weight"]
            )
            for x in "qk"
        }
        theirs |= {
            f"{base}.mlp.{new}.weight": ours[f"layers.{at}.feed_forward.{old}.weight"].clone()
            for old, new in words.items()
        }
        return ours, theirs

    source, result = each_layer(layer)
    odd = frozenset(n for n in result if ".q_proj." in n or ".k_proj." in n)
    return Conversion(source, result, unexplained=odd)


CONVERSIONS: tuple[Callable[[], Conversion], ...] = tuple(map(seeded, (
    gpt2_to_separate_linears, timm_vit_to_transformers, transformers_vit_to_timm, llama_to_fused,
    fused_to_llama, mixtral_to_stacked, stacked_to_mixtral, experts_to_stacked_transposes,
    openclip_to_transformers, bert_of_tensorflow, latent_diffusion_to_diffusers,
    whisper_to_transformers, padded_vocabulary, llama_of_meta,
)))  # fmt: skip

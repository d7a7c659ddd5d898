"""Converted models in the loaders of transformers and diffusers, where these are installed."""

from __future__ import annotations

import pytest
import torch

from helpers.tensors import assert_same_tensors

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
IDS = torch.tensor([[1, 5, 9, 2]])


def library(name: str):
    return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture
def converted(ckptool):
    def run(source, output, *args) -> None:
        done = ckptool("convert", source, "-o", output, *args)
        assert done.exit_code == 0, done.stderr

    return run


@pytest.fixture
def llama(tmp_path):
    """A tiny model, and a folder that has its configuration alone."""
    transformers = library("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path / "hub"
    folder.mkdir()
    config.save_pretrained(folder)
    return model, folder


def assert_loads_as(model, folder) -> None:
    loaded = type(model).from_pretrained(folder).eval()
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("model.safetensors", ()),
        ("model.safetensors", ("--max-shard-size", "4KB")),
        ("pytorch_model.bin", ()),
    ],
)
def test_transformers_loads_the_weights_of_a_training_file(llama, converted, tmp_path, name, more):
    model, folder = llama
    optimizer = torch.optim.Adam(model.parameters())
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
    torch.save(content, tmp_path / "last.pt")
    converted(f"{tmp_path / 'last.pt'}#@model", folder / name, *more)
    assert_loads_as(model, folder)


def test_transformers_loads_weights_that_came_through_every_form(llama, converted, tmp_path):
    model, folder = llama
    torch.save(model.state_dict(), tmp_path / "a.pt")
    for source, output in (
        ("a.pt", "b.dcp"),
        ("b.dcp", "c.safetensors"),
        ("c.safetensors", "d.pt"),
    ):
        converted(tmp_path / source, tmp_path / output)
    converted(tmp_path / "d.pt", folder / "model.safetensors")
    assert_loads_as(model, folder)


def test_transformers_loads_what_was_split_by_rules(llama, converted, tmp_path):
    """Of a file with fused projections, as other projects keep them."""
    model, folder = llama
    fused = {}
    parts = {"qkv_proj": "qkv", "gate_up_proj": ("gate", "up")}
    state_dict = dict(model.state_dict())
    for layer in range(2):
        for name, words in parts.items():
            block = "self_attn" if name == "qkv_proj" else "mlp"
            base = f"model.layers.{layer}.{block}"
            split = [state_dict.pop(f"{base}.{word}_proj.weight") for word in words]
            fused[f"{base}.{name}.weight"] = torch.cat(split)
    torch.save({**state_dict, **fused}, tmp_path / "fused.pt")
    converted(
        tmp_path / "fused.pt", folder / "model.safetensors",
        "--split", "*.qkv_proj.weight=*.q_proj.weight:16,*.k_proj.weight:8,*.v_proj.weight:8",
        "--split", "*.gate_up_proj.weight=*.gate_proj.weight,*.up_proj.weight",
    )  # fmt: skip
    assert_loads_as(model, folder)


def test_diffusers_loads_the_ema_of_a_training_file(converted, tmp_path):
    diffusers = library("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    ema = {name: tensor * 0.99 for name, tensor in unet.state_dict().items()}
    content = {"state_dict": unet.state_dict(), "ema_state_dict": ema, "epoch": 1}
    torch.save(content, tmp_path / "last.ckpt")
    unet.save_config(tmp_path / "unet")
    converted(f"{tmp_path / 'last.ckpt'}#@ema", tmp_path / "unet" /
              "diffusion_pytorch_model.safetensors")  # fmt: skip
    loaded = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    assert_same_tensors(loaded.state_dict(), ema)
    loaded(torch.randn(1, 3, 8, 8), 1)

"""The rename that would make a file load, told by ``verify --like``: adapters and wrappers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

LAYERS = [
    f"layers.{layer}.{part}.lora_{side}.weight"
    for layer in range(3)
    for part in ("self_attn.q_proj", "mlp.up_proj")
    for side in "AB"
]


def adapter(rename=lambda name: name):
    """A and B of a LoRA adapter; the names as ``rename`` gives them."""
    shapes = {"A": (2, 8), "B": (8, 2)}
    return {rename(name): torch.randn(shapes[name.split("lora_")[1][0]]) for name in LAYERS}


ADAPTERS = {
    "a level missing": (
        lambda n: f"base_model.model.{n}", lambda n: f"base_model.model.model.{n}",
        "rename base_model.* to base_model.model.*",
    ),
    "the adapter's name missing": (
        lambda n: n, lambda n: n.replace(".weight", ".default_0.weight"),
        "rename lora_A. to lora_A.default_0., lora_B. to lora_B.default_0.",
    ),
    "the adapter's name too much": (
        lambda n: n.replace(".weight", ".default.weight"), lambda n: n,
        "rename lora_A.default. to lora_A., lora_B.default. to lora_B.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("as_manifest", [False, True])
def test_an_adapter_that_would_load_nothing_is_told_its_rename(
    name, as_manifest, ckptool, tmp_path
):
    has, wants, says = ADAPTERS[name]
    save_file(adapter(has), tmp_path / "adapter_model.safetensors")
    like = tmp_path / "wanted.safetensors"
    save_file(adapter(wants), like)
    if as_manifest:
        (tmp_path / "wanted.json").write_text(ckptool("inspect", like, "--json", "--tensors"))
        like = tmp_path / "wanted.json"
    path = tmp_path / "adapter_model.safetensors"
    verdict = ckptool("verify", path, "--like", like, "--json")
    found = {f["rule"]: f["remedy"] for f in verdict.json["findings"]}
    assert verdict.exit_code == 1
    assert found["CK604"] == f"{says}: then {len(LAYERS)} of {len(LAYERS)} fit"


def test_no_rename_is_made_up_where_shapes_differ(ckptool, tmp_path):
    save_file(adapter(), tmp_path / "a.safetensors")
    wanted = adapter(lambda name: name.replace(".weight", ".default.weight"))
    other = {name: tensor.repeat(2, 2) for name, tensor in wanted.items()}
    save_file(other, tmp_path / "b.safetensors")
    path, like = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    verdict = ckptool("verify", path, "--like", like, "--json")
    assert all("default" not in (f["remedy"] or "") for f in verdict.json["findings"])


# ---------------------------------------------------------------------------------------- wrappers

PLAIN = {"net.0.weight": torch.randn(8, 4), "net.0.bias": torch.randn(8)}


@pytest.mark.parametrize(
    "wrapped",
    ["_forward_module.", "_forward_module._orig_mod.", "_orig_mod._forward_module.", "module."],
)
def test_wrappers_of_the_model_are_dropped_in_any_order(wrapped, ckptool, tmp_path):
    """The EMA of a callback has none of them."""
    path = tmp_path / "last.ckpt"
    averaged = {name: tensor * 0.98 + 0.002 for name, tensor in PLAIN.items()}
    checkpoint = {
        "epoch": 1,
        "state_dict": {wrapped + name: tensor for name, tensor in PLAIN.items()},
        "callbacks": {"EMA": {"ema_weights": averaged, "decay": 0.99, "updates": 100}},
    }
    torch.save(checkpoint, path)
    out = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", path, "-o", out).exit_code == 0
    assert load_file(out).keys() == checkpoint["state_dict"].keys()
    for operand, tensors in ((path, averaged), (f"{path}#@model", PLAIN)):
        assert (
            ckptool("extract-ema", operand, "--names", "bare", "-o", out, "--force").exit_code == 0
        )
        taken = load_file(out)
        assert taken.keys() == tensors.keys()
        assert all(torch.equal(taken[name], tensors[name]) for name in tensors)
    torch.save(PLAIN, tmp_path / "module.pt")
    verdict = ckptool("verify", path, "--like", tmp_path / "module.pt", "--json")
    found = {f["rule"]: f["remedy"] for f in verdict.json["findings"]}
    assert verdict.exit_code == 1
    assert found["CK604"].endswith("then 2 of 2 fit")

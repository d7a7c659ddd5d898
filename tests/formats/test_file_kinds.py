"""The files of a checkpoint of several files: counted by kind, and said what they hold."""

from __future__ import annotations

import pytest

from ckptool.formats import open_checkpoint
from ckptool.formats.file_kinds import file_kinds
from helpers.paths import FIXTURES

SHARDED = FIXTURES / "sharded"
CASES = {
    "ranks/fsdp1_hybrid": (
        4,
        "DTensor on a mesh of 2 × 2: Replicate, Shard(0)",
        [
            ("extra_state_world_size_4_rank_*.pt", 4, "random states"),
            ("model_world_size_4_rank_*.pt", 4, "each rank's part of the weights"),
            ("optim_world_size_4_rank_*.pt", 4, "each rank's part of the optimizer state"),
        ],
    ),
    "ranks/fsdp1_three": (3, "ShardedTensor", None),
    "ranks/replicated": (2, "DTensor on a mesh of 2: Replicate", None),
    "flattened/fairscale_two": (2, "flattened parameters", [("checkpoint-shard*.pt", 2, "part")]),
    "rank_ema/local": (3, "plain tensors", [("ema_rank_*.safetensors", 3, "EMA weights")]),
    "zero/stage3_many": (
        4,
        "ZeRO stage 3",
        [
            ("global_step2/bf16_zero_pp_rank_*_mp_rank_00_optim_states.pt", 4, "float32 weights"),
            ("global_step2/zero_pp_rank_*_mp_rank_00_model_states.pt", 4, "frozen parameters"),
        ],
    ),
    "universal/stage2_many": (None, "whole parameters", None),
    "dcp_safetensors/rows": (None, "in the files of 2 ranks", None),
    "rank_ema/dcp": (None, "in the files of 3 ranks", [
        (".metadata", 1, "the plan"), ("__*_0.distcp", 3, "parts of tensors")
    ]),
    "engines/accelerate_zero3/checkpoint_0": (2, "pytorch_model: ZeRO stage 3", None),
    "folders/diffusers/checkpoint-4": (1, None, [
        ("optimizer.bin", 1, "optimizer state"),
        ("random_states_0.pkl", 1, "random states"),
        ("scheduler.bin", 1, "scheduler"),
        ("unet/diffusion_pytorch_model.safetensors", 1, "weights"),
        ("unet_ema/diffusion_pytorch_model.safetensors", 1, "EMA weights"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_ranks_are_counted_and_the_files_named(case, ckptool):
    world, strategy, files = CASES[case]
    report = ckptool("inspect", SHARDED / case, "--json").json["sharing"]
    assert report["world_size"] == world
    assert (strategy or "") in (report["strategy"] or "")
    for found, (name, count, holds) in zip(report["files"], files or (), strict=bool(files)):
        assert (found["name"], found["count"]) == (name, count)
        assert holds in found["holds"]
    text = ckptool("inspect", SHARDED / case).stdout
    for row in report["files"]:
        assert row["name"] in text
        assert row["holds"] in text
    if world:
        assert f"{world} rank" in text


def test_every_file_is_of_a_kind():
    """Of all folders of ranks in the fixtures."""
    for folder in ("ranks", "zero", "universal", "dcp_safetensors", "rank_ema", "flattened"):
        for save in sorted(path for path in (SHARDED / folder).iterdir() if path.is_dir()):
            with open_checkpoint(save) as checkpoint:
                kinds = file_kinds(checkpoint)
                opened = {path for path in checkpoint.files if path != checkpoint.path}
            assert sum(kind.number for kind in kinds) == len(opened)
            assert [kind.name for kind in kinds if kind.holds is None] == []


def test_a_file_and_a_part_have_none(ckptool):
    for operand in (
        SHARDED / "ranks" / "mesh.whole.safetensors",
        f"{SHARDED / 'ranks' / 'fsdp2_two'}#model",
    ):
        assert "sharing" not in ckptool("inspect", operand, "--json").json

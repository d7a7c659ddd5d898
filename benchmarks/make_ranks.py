"""Makes the folders of ranks that ``sharded.py`` reads: ``make_ranks.py KIND FOLDER GB``.

``ranks``   a ``torch.save`` for each of 8 ranks with DTensors, as FSDP2 cuts them
``shards``  a safetensors file for each of 8 ranks, with the places of its parts in the header
``many``    1,000 shards of 100 tensors with an index, and beside the folder one file with all

One process plays all ranks, by torch's fake process group.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

WORLD, WIDTH = 8, 1024
PARTS = 48  # tensors


def rows(gb: float) -> int:
    """The rows of each tensor that a rank holds."""
    return max(1, round(gb * 1e9 / (4 * WIDTH * WORLD * PARTS)))


def parts(rank: int, gb: float) -> dict[str, torch.Tensor]:
    """The parts of one rank."""
    torch.manual_seed(rank)
    return {f"layers.{n}.weight": torch.randn(rows(gb), WIDTH) for n in range(PARTS)}


def ranks(folder: Path, gb: float) -> None:
    for rank in range(WORLD):
        dist.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore())
        mesh = init_device_mesh("cpu", (WORLD,))
        held = {
            name: DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
            for name, local in parts(rank, gb).items()
        }
        torch.save(held, folder / f"model_world_size_{WORLD}_rank_{rank}.pt")
        dist.destroy_process_group()


def shards(folder: Path, gb: float) -> None:
    for rank in range(WORLD):
        held = parts(rank, gb)
        begin = {"saved_offsets": [rank * rows(gb), 0]}
        info = json.dumps(dict.fromkeys(held, begin))
        name = f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
        save_file(held, folder / name, metadata={"DCP_SHARDING_INFO": info})


def many(folder: Path, _gb: float) -> None:
    whole = {f"layers.{n}.weight": torch.full((2, 2), float(n)) for n in range(100_000)}
    save_file(whole, folder.with_suffix(".safetensors"))
    names, count = list(whole), 1_000
    weight_map = {}
    for nth in range(count):
        file = f"model-{nth + 1:05d}-of-{count:05d}.safetensors"
        held = names[nth * 100 : nth * 100 + 100]
        save_file({name: whole[name] for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    kind, place, size = sys.argv[1:]
    {"ranks": ranks, "shards": shards, "many": many}[kind](Path(place), float(size))

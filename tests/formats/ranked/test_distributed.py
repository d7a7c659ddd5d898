"""Parts of DTensors: of any shape, on any mesh, with any placements, they are the whole again.

torch itself cuts the tensors: a fake group of processes plays all ranks in this process.
"""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.tensors.as_torch import as_torch
from helpers.thinned import examples

shapes = st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple)
meshes = st.sampled_from([(1,), (2,), (3,), (5,), (8,), (2, 2), (2, 3), (4, 2), (1, 3)])


@st.composite
def placed(draw):
    """(shape of a tensor, mesh, a placement for each dimension of the mesh)."""
    shape, mesh = draw(shapes), draw(meshes)
    cut = st.one_of(st.none(), st.integers(0, len(shape) - 1))
    return shape, mesh, draw(st.lists(cut, min_size=len(mesh), max_size=len(mesh)))


def save(folder, whole, mesh, cuts):
    """Write the file of each rank as torch cuts the tensors on a mesh."""
    folder.mkdir()
    world = prod(mesh)
    placements = [Replicate() if axis is None else Shard(axis) for axis in cuts]
    names = [f"d{n}" for n in range(len(mesh))]
    for rank in range(world):
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        try:
            at = init_device_mesh("cpu", mesh, mesh_dim_names=names)
            state = {
                # The fake group moves nothing, and so nothing is scattered from rank 0.
                name: distribute_tensor(tensor, at, placements, src_data_rank=None)
                for name, tensor in whole.items()
            }
            torch.save(state, folder / f"model_world_size_{world}_rank_{rank}.pt")
        finally:
            dist.destroy_process_group()


@examples(60)
@given(placed())
def test_parts_on_any_mesh_are_the_tensor(tmp_path_factory, case):
    shape, mesh, cuts = case
    folder = tmp_path_factory.mktemp("parts") / "save"
    whole = {
        "w": torch.arange(float(prod(shape))).reshape(shape),
        "b": torch.arange(prod(shape), dtype=torch.bfloat16).reshape(shape),
    }
    save(folder, whole, mesh, cuts)
    with open_checkpoint(folder) as checkpoint:
        found = as_torch(checkpoint.tree, checkpoint.reader)
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), (name, case)


@examples(30)
@given(placed(), st.data())
def test_without_any_rank_there_is_no_tensor(tmp_path_factory, case, data):
    shape, mesh, cuts = case
    folder = tmp_path_factory.mktemp("parts") / "save"
    save(folder, {"w": torch.randn(shape)}, mesh, cuts)
    files = sorted(folder.iterdir())
    if len(files) == 1:
        return
    data.draw(st.sampled_from(files)).unlink()
    with pytest.raises(CkptError, match="missing"):
        open_checkpoint(folder).close()

"""dcp: what ``torch.distributed.checkpoint.save`` writes, a plan and shards."""

from __future__ import annotations

import pickle
import random
import socket
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)

from ckptool.errors import CkptError, DamagedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.numerics import value_bytes
from judge import assert_reads_like, tensor_bytes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

CUT = (4, 6)


def state():
    return {
        "model": {
            "weight": torch.arange(6.0).view(2, 3),
            "scalar": torch.tensor(2.0),
            "empty": torch.empty(0, 3),
            "half": torch.ones(4, dtype=torch.bfloat16),
        },
        "epoch": 3,
    }


def save(folder, obj):
    dcp.save(obj, checkpoint_id=folder, no_dist=True)


def edit_plan(folder, change):
    """Change the plan of a folder, as an object."""
    file = folder / ".metadata"
    plan = pickle.loads(file.read_bytes())
    change(plan)
    file.write_bytes(pickle.dumps(plan))


def test_reads_alike(tmp_path):
    save(tmp_path, state())
    assert_reads_like(tmp_path, state())


def test_conjugated_tensors_are_refused(tmp_path):
    save(tmp_path, {"weight": torch.ones(2, dtype=torch.complex64).conj()})
    with pytest.raises(UnsupportedError, match="conj") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.address == "weight"


# --------------------------------------------------------------------------------- several chunks


def in_chunks(folder, corners, shape=CUT):
    """A folder with one tensor in chunks, (offsets, sizes) each; the values are made up."""
    save(folder, {f"part{i}": torch.full(sizes, float(i)) for i, (_, sizes) in enumerate(corners)})

    def join(plan):
        entry = plan.state_dict_metadata["part0"]
        entry.size = torch.Size(shape)
        entry.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in corners]
        parts = {index.fqn: info for index, info in plan.storage_data.items()}
        plan.state_dict_metadata = {"weight": entry}
        plan.planner_data = {"weight": ("weight",)}
        plan.storage_data = {
            MetadataIndex("weight", torch.Size(offsets)): parts[f"part{i}"]
            for i, (offsets, _) in enumerate(corners)
        }

    edit_plan(folder, join)


GRID = [((0, 0), (2, 3)), ((0, 3), (2, 3)), ((2, 0), (2, 3)), ((2, 3), (2, 3))]
COLUMNS_CUT_UNLIKE = [((0, 0), (1, 3)), ((1, 0), (3, 3)), ((0, 3), (3, 3)), ((3, 3), (1, 3))]
EMPTY_RANK = [((0, 0), (4, 6)), ((4, 0), (0, 6))]


@pytest.mark.parametrize("corners", [GRID, COLUMNS_CUT_UNLIKE, EMPTY_RANK])
def test_chunks_are_put_together(corners, tmp_path):
    in_chunks(tmp_path, corners)
    wanted = torch.empty(CUT)
    for i, ((row, column), (rows, columns)) in enumerate(corners):
        wanted[row : row + rows, column : column + columns] = i
    with open_checkpoint(tmp_path) as checkpoint:
        stored = b"".join(value_bytes(checkpoint.reader, checkpoint.tree["weight"]))
    assert stored == tensor_bytes(wanted)


@pytest.mark.parametrize(
    "corners",
    [
        pytest.param(GRID[:3], id="hole"),
        pytest.param([((0, 0), (2, 6))], id="single and short"),
        pytest.param([((0, 0), (6, 4))], id="single and turned"),
        pytest.param([*GRID[:3], ((3, 3), (2, 3))], id="out of bounds"),
        pytest.param([*GRID[:3], ((1, 3), (2, 3))], id="overlap"),
        pytest.param([((0,), (4,)), ((4,), (20,))], id="other dimensions"),
    ],
)
def test_chunks_that_are_not_the_tensor(corners, tmp_path):
    in_chunks(tmp_path, corners)
    with pytest.raises(DamagedError) as refused:
        open_checkpoint(tmp_path)
    assert refused.value.address == "weight"


def test_many_chunks_take_no_time(tmp_path):
    in_chunks(tmp_path, [((0, i), (1, 1)) for i in range(1000)], shape=(1, 1000))
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.tree["weight"].chunks) == 1000


def test_chunks_of_other_types(tmp_path):
    save(tmp_path, {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)})

    def join(plan):
        entry = plan.state_dict_metadata.pop("b")
        del plan.state_dict_metadata["a"]
        entry.size = torch.Size([4])
        entry.chunks = [ChunkStorageMetadata(torch.Size([i]), torch.Size([2])) for i in (0, 2)]
        plan.state_dict_metadata["weight"] = entry
        plan.storage_data = {
            MetadataIndex("weight", torch.Size([0 if index.fqn == "b" else 2])): info
            for index, info in plan.storage_data.items()
        }

    edit_plan(tmp_path, join)
    with pytest.raises(DamagedError, match=r"chunk at \[2\] has another element type"):
        open_checkpoint(tmp_path)


def test_another_type_than_planned(tmp_path):
    save(tmp_path, {"weight": torch.ones(2)})

    def change(plan):
        plan.state_dict_metadata["weight"].properties = TensorProperties(dtype=torch.int32)

    edit_plan(tmp_path, change)
    with pytest.raises(DamagedError, match="another element type"):
        open_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------ broken plans


@pytest.mark.parametrize("owner", ["entry", "chunk"])
@pytest.mark.parametrize("value", [None, 3, "ab", [-1, 1], [1.5], [2**70, 0], "gone"])
def test_plans_with_wrong_fields(owner, value, tmp_path):
    save(tmp_path, {"weight": torch.ones(2, 3)})
    plain = (tmp_path / ".metadata").read_bytes()
    for name in {"entry": ("size", "chunks"), "chunk": ("offsets", "sizes")}[owner]:

        def change(plan, name=name):
            entry = plan.state_dict_metadata["weight"]
            fields = vars(entry if owner == "entry" else entry.chunks[0])
            fields[name] = value
            if value == "gone":
                del fields[name]

        (tmp_path / ".metadata").write_bytes(plain)
        edit_plan(tmp_path, change)
        with pytest.raises(DamagedError):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.storage_data.clear(),
        lambda plan: plan.planner_data.update(epoch=("model",)),
        lambda plan: plan.planner_data.update(epoch=((1, 2), "x")),
        lambda plan: plan.state_dict_metadata.update({5: 5}),
        lambda plan: vars(plan).update(storage_data=[1]),
        lambda plan: vars(next(iter(plan.storage_data))).update(offset=[[]]),
        lambda plan: vars(next(iter(plan.storage_data.values()))).update(length=1 << 40),
        lambda plan: vars(next(iter(plan.storage_data.values()))).update(relative_path="../x"),
    ],
)
def test_broken_plans(change, tmp_path):
    save(tmp_path, state())
    edit_plan(tmp_path, change)
    with pytest.raises(DamagedError):
        open_checkpoint(tmp_path)


def test_only_refusals_escape_from_mutated_plans(tmp_path):
    save(tmp_path, state())
    file = tmp_path / ".metadata"
    plain = file.read_bytes()
    chance = random.Random(0)
    for _ in range(400):
        broken = bytearray(plain)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        file.write_bytes(broken)
        with suppress(CkptError):
            open_checkpoint(tmp_path).close()


# --------------------------------------------------------------------------------------- two ranks


def grid():
    return torch.arange(15.0).view(5, 3)


def save_sharded(rank, port, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    cut = {
        "rows": distribute_tensor(grid(), mesh, [Shard(0)]),
        "columns": distribute_tensor(grid(), mesh, [Shard(1)]),
        "one_row": distribute_tensor(grid()[:1].clone(), mesh, [Shard(0)]),
    }
    dcp.save({"model": cut}, checkpoint_id=folder)
    dist.destroy_process_group()


@pytest.mark.slow
def test_tensors_sharded_over_two_ranks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(save_sharded, (port, str(tmp_path)), nprocs=2)
    with open_checkpoint(tmp_path) as checkpoint:
        model = checkpoint.tree["model"]
        stored = {name: b"".join(value_bytes(checkpoint.reader, model[name])) for name in model}
    assert len(model["rows"].chunks) == len(model["columns"].chunks) == 2
    assert stored == {
        "rows": tensor_bytes(grid()),
        "columns": tensor_bytes(grid()),
        "one_row": tensor_bytes(grid()[:1].clone()),
    }

"""dcp: the key paths of trainers, as torch's own writer puts them into a plan.

torchtitan keeps the model's names at the top, beside an optimizer that is flat already; Megatron-LM
flattens nothing, and its names have slashes and dots. Both are loaded by torch beside ckptool.

Source: torchtitan ``components/checkpointer/dcp.py``, ``optimizer/utils.py``; Megatron-LM
``core/dist_checkpointing/strategies/torch.py``, ``checkpointable.py``, August 2026.
"""

from __future__ import annotations

import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import _create_write_items
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from ckptool.formats import open_checkpoint
from ckptool.tensors.as_torch import as_torch
from ckptool.tree.nodes import TensorRef
from helpers.judge import assert_reads_like
from helpers.likeness import assert_same_objects

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def loaded(folder) -> dict:
    """What torch makes of a directory whose content it does not know."""
    found: dict = {}
    _load_state_dict(
        found,
        storage_reader=FileSystemReader(folder),
        planner=_EmptyStateDictLoadPlanner(),
        no_dist=True,
    )
    return found


# --------------------------------------------------------------------------------------- torchtitan


class Block(torch.nn.Module):
    """Names with numbers, dots and underscores, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = torch.nn.Embedding(7, 4)
        self.layers = torch.nn.ModuleDict({"0": torch.nn.Linear(4, 4), "1": torch.nn.Linear(4, 4)})
        self.norm = torch.nn.RMSNorm(4)
        self.output = torch.nn.Linear(4, 7, bias=False)


def titan() -> dict:
    """What its checkpointer gives to ``dcp.save``, after a step."""
    model = Block()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()
    names = saved["param_groups"][0]["param_names"]
    flat = {
        f"state.{names[number]}.{key}": value
        for number, state in saved["state"].items()
        for key, value in state.items()
    }
    group = {
        k: v for k, v in saved["param_groups"][0].items() if k not in {"params", "param_names"}
    }
    flat |= {f"param_groups.{name}.{key}": value for name in names for key, value in group.items()}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    return {
        **model.state_dict(),
        "optimizer": flat,
        "lr_scheduler": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
        "dataloader": {"world_size": 1, "dp_rank_0": pickle.dumps({"_sample_idx": 12})},
        "train_state": {
            "step": torch.tensor(1, dtype=torch.int32),
            "ntokens_seen": torch.tensor(96, dtype=torch.int64),
        },
    }


def test_torchtitan(tmp_path):
    saved = titan()
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    assert_reads_like(tmp_path, loaded(tmp_path))
    assert_reads_like(tmp_path, saved)


# -------------------------------------------------------------------------------------- Megatron-LM


class Shards(torch.Tensor):
    """Parts of a tensor that one rank has, as ``LocalShardsContainer`` holds them."""

    @staticmethod
    def __new__(cls, whole: torch.Tensor, _axis: int):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape)

    def __init__(self, whole: torch.Tensor, axis: int) -> None:
        self.whole, self.axis = whole, axis

    def __create_write_items__(self, fqn: str, _own: torch.Tensor) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets, number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk, TensorProperties.create_from_tensor(self.whole), self.whole.shape
                ),
            )
            for number, chunk in enumerate(self.__create_chunk_list__())
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        sizes = [*self.whole.shape]
        sizes[self.axis] = 1
        starts = ([0] * len(sizes) for _ in range(self.whole.shape[self.axis]))
        offsets = [[*s[: self.axis], n, *s[self.axis + 1 :]] for n, s in enumerate(starts)]
        return [ChunkStorageMetadata(torch.Size(o), torch.Size(sizes)) for o in offsets]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.whole.narrow(self.axis, index.offset[self.axis], 1).contiguous()

    @classmethod
    def __torch_dispatch__(cls, func, _types, _args=(), _kwargs=None):
        raise NotImplementedError(func)


class Planner(DefaultSavePlanner):
    """``MCoreSavePlanner``: nothing is flattened, and objects are bytes already."""

    def create_local_plan(self):
        items = [item for name, obj in self.state_dict.items() for item in _create_items(name, obj)]
        self.plan = dcp.SavePlan(items=items, planner_data=self.mappings)
        return self.plan

    def transform_object(self, _write_item, obj):
        return obj


def _create_items(name: str, obj: object) -> list[WriteItem]:
    own = getattr(obj, "__create_write_items__", None)
    return own(name, obj) if own else _create_write_items(name, obj)


def sharded_object(value: object) -> io.BytesIO:
    """A ``ShardedObject``, of which a rank may have several."""
    stream = io.BytesIO()
    torch.save([value], stream)
    return stream


QKV = "decoder.layers.self_attention.linear_qkv.weight"
STATES = ("fp32_param", "exp_avg", "exp_avg_sq")


def megatron() -> dict:
    """A model of three layers in one tensor each, its optimizer, and objects of each rank."""
    weights = {"embedding.word_embeddings.weight": torch.randn(8, 4), QKV: torch.randn(3, 6, 4)}
    return {
        **{name: Shards(value, 0) for name, value in weights.items()},
        **{
            f"{prefix}optimizer.state.{state}.{name}": Shards(torch.randn_like(value), axis)
            for prefix, axis in (("", 0), ("chained_1.", 1))
            for state in STATES
            for name, value in weights.items()
        },
        "decoder.layers.self_attention.core_attention._extra_state/shard_0_3": sharded_object(None),
        "optimizer/shard_0_1": sharded_object({"param_groups": [{"lr": 1e-4, "params": [0]}]}),
        "rng_state/shard_0.0_1.1": sharded_object([{"random_rng_state": (3, (1, 2), None)}]),
    }


def test_megatron(tmp_path):
    saved = megatron()
    planner = Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.save(saved, checkpoint_id=tmp_path, planner=planner, no_dist=True)
    file = tmp_path / ".metadata"
    plan = pickle.loads(file.read_bytes())
    assert plan.planner_data is None
    plan.mcore_data = {QKV: {"nd_reformulated_orig_global_shape": (3, 6, 4)}}
    plan.all_local_plans = [planner.plan]
    file.write_bytes(pickle.dumps(plan))
    wanted = loaded(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tree.keys() == wanted.keys() == saved.keys()
        refs = {k: v for k, v in checkpoint.tree.items() if isinstance(v, TensorRef)}
        found = {**checkpoint.tree, **as_torch(refs, checkpoint.reader)}
    assert torch.equal(found[QKV], saved[QKV].whole)
    assert_same_objects(found, wanted)

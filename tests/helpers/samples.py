"""Objects that training scripts save, one row each: what the formats of pickles must read.

A row is a function without arguments, so that every test makes its own.
"""

from __future__ import annotations

import argparse
import enum
import pathlib
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

# --------------------------------------------------------------------------------- classes to
# pickle


class TinyNet(nn.Module):
    """A shared submodule, BatchNorm, a buffer that ``state_dict`` leaves out, an absent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.layers = nn.ModuleList([self.encoder, nn.Sequential(nn.Linear(2, 2, bias=False))])
        self.register_buffer("grid", torch.linspace(0.0, 1.0, 3), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("unused", None)
        self.config = {"width": 3}
        self.alone = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.encoder(x))


class NamedTensor(torch.Tensor):
    """A subclass of Tensor, which carries attributes."""


class Phase(enum.Enum):
    """A state of training."""

    WARMUP = "warmup"
    STEADY = 2


@dataclass
class Settings:
    """What scripts keep beside the weights."""

    width: int = 3
    names: list = field(default_factory=lambda: ["a", "b"])


class Tracker(dict):
    """A dict with attributes."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.best = 0.5


class History(list):
    """A list with attributes."""


class Slotted:
    """Without ``__dict__``."""

    __slots__ = ("left", "right")

    def __init__(self) -> None:
        self.left, self.right = 1, [2.5]


# -------------------------------------------------------------------------------------------
# tensors


def filled(dtype: torch.dtype, count: int) -> Tensor:
    """``count`` elements whose bytes differ, for every element type."""
    nbytes = count * torch.empty(0, dtype=dtype).element_size()
    raw = (torch.arange(nbytes) * 37 + 11).to(torch.uint8)
    raw = raw & 1 if dtype is torch.bool else raw
    return torch.empty(0, dtype=dtype).set_(raw.untyped_storage(), 0, (count,), (1,))


OLD_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
NEW_DTYPES = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu, torch.float4_e2m1fn_x2, torch.complex32,
    torch.uint16, torch.uint32, torch.uint64,
    torch.bits8, torch.bits16, torch.bits1x8, torch.bits2x4, torch.bits4x2,
)  # fmt: skip


def every_old_dtype():
    return {str(dtype): filled(dtype, 6).view(2, 3) for dtype in OLD_DTYPES}


def every_new_dtype():
    return {str(dtype): filled(dtype, 6).view(2, 3) for dtype in NEW_DTYPES}


def state_dict_with_metadata():
    torch.manual_seed(0)
    return TinyNet().state_dict()


def parameters():
    return {
        "parameter": nn.Parameter(torch.randn(2, 3)),
        "frozen": nn.Parameter(torch.randn(3), requires_grad=False),
        "buffer": nn.Buffer(torch.arange(3.0)),
        "list": nn.ParameterList([nn.Parameter(torch.ones(2))]),
        "leaf": torch.ones(2, requires_grad=True),
    }


def views():
    base = torch.arange(60.0)
    grid = base.view(3, 4, 5)
    return {
        "transposed": grid.transpose(0, 2),
        "slice": grid[1:, ::2, 1:4],
        "row": grid[2, 1],
        "element": grid[1, 2, 3],
        "expanded": base[7:10].expand(4, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0),
        "empty_matrix": torch.empty(3, 0, 2),
        "empty_view": base[60:],
        "one": torch.ones(1, 1, 1),
        "shadowed": torch.empty_strided((2, 2), (3, 7)).fill_(1.5),
    }


def ties():
    weight = torch.randn(4, 3)
    return {
        "embed": weight,
        "head": weight,
        "again": weight.detach(),
        "transposed": weight.t(),
        "half": weight[2:],
        "apart": weight.clone(),
        "nested": [weight, {"deep": weight[1]}],
    }


def quantized():
    values = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 2.0, 3.0]])
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([3, 5])
    made = {
        "per_tensor": torch.quantize_per_tensor(values, 0.1, 10, torch.quint8),
        "signed": torch.quantize_per_tensor(values, 0.5, 0, torch.qint8),
        "wide": torch.quantize_per_tensor(values, 0.01, 2, torch.qint32),
        "per_channel": torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8),
    }
    made["transposed"] = made["per_tensor"].t()
    return made


def packed_quantized():
    values, zeros = torch.randn(3, 4), torch.zeros(3)
    scales = torch.tensor([0.1, 0.2, 0.3])
    return {
        "even": torch.quantize_per_channel(values, scales, zeros, 0, torch.quint4x2),
        "odd": torch.quantize_per_channel(torch.randn(3, 3), scales, zeros, 0, torch.quint4x2),
    }


def sparse():
    dense = torch.tensor([[0.0, 1.0, 0.0, 2.0], [3.0, 0.0, 0.0, 4.0]])
    return {
        "coo": dense.to_sparse(),
        "uncoalesced": torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 4)),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "bsc": dense.to_sparse_bsc((2, 2)),
    }


def nested_tensor():
    return {"nested": torch.nested.nested_tensor([torch.arange(3.0), torch.arange(5.0)])}


def lazy_views():
    waves = torch.arange(8.0).view(torch.complex64)
    other = torch.arange(6.0).view(torch.complex64)
    return {"conj": waves.conj(), "tail": waves[1:].conj(), "neg": other.conj().imag}


def meta_tensor():
    return {"meta": torch.empty(3, 2, device="meta", dtype=torch.bfloat16)}


def storages():
    tensor = torch.arange(4.0)
    return {"tensor": tensor, "untyped": torch.arange(3, dtype=torch.uint8).untyped_storage()}


# -------------------------------------------------------------------------------------------
# objects


def module():
    torch.manual_seed(0)
    return TinyNet()


def module_and_average():
    torch.manual_seed(0)
    return {"G": TinyNet().train(), "G_ema": TinyNet().eval().requires_grad_(False)}


def optimizers():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3)
    momentum = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for optimizer in (adam, momentum):
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(momentum, 2)
    return [adam.state_dict(), momentum.state_dict(), schedule.state_dict()]


def namespace():
    return argparse.Namespace(lr=1e-3, layers=(2, 3), data=argparse.Namespace(root="data"))


def numpy_values():
    return {
        "vector": np.arange(5, dtype=np.float32),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i4"),
        "scalar_array": np.array(2.5),
        "empty": np.empty((0, 3), dtype=np.int64),
        "text": np.array(["ab", "c"]),
        "bytes": np.array([b"ab", b"c"]),
        "bools": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "large": np.arange(20_000, dtype=np.float32),
        "float": np.float64(2.5),
        "half": np.float16(1.5),
        "int": np.int64(-3),
        "flag": np.bool_(True),
        "wave": np.complex128(1 - 2j),
    }


def random_states():
    name, keys, *rest = np.random.RandomState(3).get_state()
    return {"torch": torch.get_rng_state(), "numpy": (name, keys, *rest)}


def enums():
    return {"phase": Phase.WARMUP, "again": Phase.WARMUP, "other": Phase.STEADY}


def paths():
    return [pathlib.PurePosixPath("/data/run 1"), pathlib.PurePosixPath("relative/x.pt")]


def dataclasses():
    return {"settings": Settings(), "more": [Settings(5, [])]}


def collections():
    counts = defaultdict(list, {"a": [1], "b": []})
    return {
        "defaultdict": counts,
        "counter": Counter("abca"),
        "deque": deque([1, 2, 3], maxlen=5),
        "ordered": OrderedDict([("z", 1), ("a", OrderedDict())]),
        "set": {1, 2, 3},
        "frozenset": frozenset({"x", "y"}),
        "tracker": Tracker({"a": 1}),
        "history": History([1, 2]),
        "integer keys": {0: "a", -5: "b", 2**40: "c"},
        "odd keys": {None: 1, True: 2, 2.5: 3, (1, "a"): 4, b"k": 5},
    }


def partials():
    return {
        "partial": partial(nn.Linear, 3, bias=False),
        "function": nn.functional.relu,
        "class": nn.Linear,
    }


def scalars():
    return [
        None, True, False, 0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**200), 0.0, -0.0,
        1e-300, float("inf"), float("nan"), 1 + 2j, "", "text", "Größe 3 µm 🎲", "\ud800",
        "\0\n'\"\\",
        b"", b"bytes\x00\xff", bytearray(b"array"), "long" * 100, bytes(100_000),
        bytearray(100_000),
    ]  # fmt: skip


def torch_values():
    return {
        "dtype": torch.bfloat16,
        "size": torch.Size([4, 3]),
        "device": torch.device("cpu"),
        "generator": torch.Generator().get_state(),
    }


def nesting():
    inner: list = [[[[(), ([],), {}]]]]
    shared = {"shared": [1]}
    return {"deep": inner, "one": shared, "two": shared, "tuple": (1, (2, (3, (4, 5))), shared)}


def subclass():
    tensor = torch.arange(3.0).as_subclass(NamedTensor)
    return {"tensor": tensor}


def bare_tensor():
    return torch.arange(6.0).view(2, 3)


def bare_list():
    return [torch.ones(2), torch.zeros(3, dtype=torch.int16), "end"]


def nothing():
    return {}


EVERYWHERE = (
    every_old_dtype, state_dict_with_metadata, parameters, views, ties, quantized, packed_quantized,
    sparse, nested_tensor, lazy_views, meta_tensor, module, module_and_average, optimizers,
    namespace, numpy_values, random_states, enums, paths, dataclasses, collections, partials,
    scalars,
    torch_values, nesting, subclass, bare_tensor, bare_list, nothing,
)  # fmt: skip

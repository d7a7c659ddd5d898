"""The table of calls: tensors and containers from what pickles say, checked first."""

from __future__ import annotations

import importlib
import io
import pickle
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS, UINT8
from ckptool.errors import CkptError, DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.pickles.budget import MIN_WORK
from ckptool.formats.pickles.calls import CALLS, FROM_TYPE, NESTED
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.formats.pickles.tensor_views import storage_dtype, storage_view, tensor_view
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.modules import module_state_dict
from ckptool.tree.nodes import ArrayRef, CompositeTensor, GlobalRef, Opaque, StorageRef, TensorRef
from ckptool.tree.walking import tensors
from helpers import samples, strategies
from helpers.judge import Comparison, assert_reads_like
from helpers.paths import FIXTURES
from helpers.thinned import examples

FLOAT32 = BY_NAME["float32"]
PLACE = Memory(bytes(48))
STORAGE = StorageRef(FLOAT32, ByteSpan(PLACE, 8, 40))  # ten elements


def read(data: bytes, locate=lambda _key, nbytes: ByteSpan(PLACE, 0, nbytes)):
    return PickleMachine(Memory(data), builder=TorchBuilder(locate)).run()


# ----------------------------------------------------------------------------------------- storages


@pytest.mark.parametrize("module", ["torch", "torch.cuda", "torch.storage"])
@pytest.mark.parametrize("name", BY_STORAGE_CLASS)
def test_storage_classes(module, name):
    assert storage_dtype(GlobalRef(module, name)) is BY_STORAGE_CLASS[name]


@pytest.mark.parametrize("name", ["UntypedStorage", "_UntypedStorage"])
def test_untyped_storages_are_bytes(name):
    assert storage_dtype(GlobalRef("torch.storage", name)) is UINT8


def test_unknown_storage_class_is_named():
    with pytest.raises(DamagedError, match="'QuaternionStorage' is not known"):
        storage_dtype(GlobalRef("torch", "QuaternionStorage"))


def test_first_mention_of_a_storage_counts():
    asked = []
    builder = TorchBuilder(lambda key, n: asked.append((key, n)) or ByteSpan(PLACE, 0, n))
    first = builder.persistent(("storage", GlobalRef("torch", "FloatStorage"), "0", "cpu", 4))
    second = builder.persistent(("storage", GlobalRef("torch", "HalfStorage"), "0", "cpu", 2))
    assert first is second
    assert asked == [("0", 16)]


@pytest.mark.parametrize("saved_id", ["name", 7, None, (), ("other", 1), ("storage",), ("module",)])
def test_other_persistent_ids_stay_inert(saved_id):
    made = TorchBuilder(lambda _key, _nbytes: None).persistent(saved_id)
    assert isinstance(made, Opaque)
    assert made.args == (saved_id,)


@pytest.mark.parametrize(("offset", "size"), [(0, 11), (10, 1), (-1, 1), (0, -1), (0.0, 1)])
def test_views_of_storages_must_fit(offset, size):
    with pytest.raises(DamagedError):
        storage_view(STORAGE, ("key", offset, size))


# ------------------------------------------------------------------------------------------ tensors


def test_a_view_is_a_slice_of_its_storage():
    ref = tensor_view(STORAGE, 2, (2, 3), (1, 2))
    (chunk,) = ref.chunks
    assert chunk.span == ByteSpan(PLACE, 8 + 2 * 4, 6 * 4)  # from element 2 to 2 + 1 + 4
    assert (chunk.shape, chunk.strides, chunk.offsets) == ((2, 3), (1, 2), (0, 0))


FAULTS = {
    "beyond the end": (STORAGE, 0, (11,), (1,)),
    "beyond by its offset": (STORAGE, 10, (1,), (1,)),
    "beyond by its strides": (STORAGE, 0, (2, 2), (9, 1)),
    "far beyond": (STORAGE, 0, (2**62, 2**62), (2**62, 1)),
    "negative offset": (STORAGE, -1, (1,), (1,)),
    "negative size": (STORAGE, 0, (-1,), (1,)),
    "negative stride": (STORAGE, 9, (2,), (-1,)),
    "float": (STORAGE, 0, (1.0,), (1,)),
    "boolean": (STORAGE, 0, (True,), (1,)),
    "text": (STORAGE, 0, ("1",), (1,)),
    "more strides than sizes": (STORAGE, 0, (1,), (1, 1)),
    "no storage": ({}, 0, (1,), (1,)),
    "an unknown object": (Opaque("lab.Storage"), 0, (1,), (1,)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_must_fit_their_storage(fault):
    with pytest.raises(DamagedError):
        tensor_view(*FAULTS[fault])


def test_the_message_has_the_numbers():
    with pytest.raises(DamagedError, match=r"shape \[11\] needs bytes 0 to 44 .* which has 40"):
        tensor_view(STORAGE, 0, (11,), (1,))


@examples(300)
@given(
    offset=st.integers(-2, 12),
    shape=st.lists(st.integers(0, 5), max_size=3),
    strides=st.lists(st.integers(-1, 5), max_size=3),
)
def test_tensors_are_within_their_storage_or_refused_as_torch_does(offset, shape, strides):
    whole = torch.arange(10.0)
    try:
        theirs = torch.as_strided(whole, shape, strides, offset)
    except RuntimeError:
        theirs = None
    try:
        ours = tensor_view(STORAGE, offset, shape, strides)
    except DamagedError:
        ours = None
    if ours is None:
        assert theirs is None
        return
    span = ours.chunks[0].span
    assert span.nbytes == 0 or (span.offset >= 8 and span.offset + span.nbytes <= 48)
    if theirs is not None:
        assert (ours.shape, ours.chunks[0].strides) == (tuple(theirs.shape), theirs.stride())


def test_tensors_without_storage_have_no_chunks():
    ref = tensor_view(StorageRef(FLOAT32, None, "meta"), 0, (2,), (1,))
    assert (ref.chunks, ref.device) == ((), "meta")


def test_unknown_element_type_is_named():
    with pytest.raises(DamagedError, match="'float7' is not known"):
        CALLS["torch._utils._rebuild_meta_tensor_no_storage"](
            GlobalRef("torch", "float7"), (1,), (1,), False
        )


def test_sparse_tensor_of_something_else():
    with pytest.raises(DamagedError, match="indices are no tensor"):
        CALLS["torch._utils._rebuild_sparse_tensor"](
            GlobalRef("torch", "sparse_coo"), (None, None, (2, 2))
        )


# ---------------------------------------------------------------------------------------- the table

GONE = {
    "torch._utils._rebuild_sparse_csr_tensor",  # torch 1.8
    "torch.tensor._rebuild_from_type",  # torch 1.8 has a function there
    "torch.tensor._rebuild_from_type_v2",
    "torch_utils.persistence._reconstruct_persistent_obj",  # a file of NVIDIA's, never installed
    "tensordict._reductions._make_td",  # of a package that is not installed for the tests
}


@pytest.mark.parametrize("name", sorted([*CALLS, *FROM_TYPE, *NESTED]))
def test_the_table_names_what_there_is(name):
    module, _, attribute = name.rpartition(".")
    if name in GONE or module in {"__builtin__", "copy_reg", "pathlib._local"}:
        pytest.skip("of other versions")
    assert hasattr(importlib.import_module(module), attribute)


def hostile_arguments():
    pieces = st.one_of(
        strategies.plain_data(),
        st.sampled_from(
            [STORAGE, tensor_view(STORAGE, 0, (2,), (1,)), Opaque("numpy.dtype", ("f4",))]
        ),
        st.sampled_from(
            [GlobalRef("torch", "float32"), GlobalRef("torch", "sparse_csr"), Opaque("a.b")]
        ),
    )
    return st.lists(pieces, max_size=5).map(tuple)


@examples(800)
@given(name=st.sampled_from(sorted([*CALLS, *FROM_TYPE, *NESTED])), args=hostile_arguments())
def test_any_arguments_are_a_value_or_an_error_of_ours(name, args):
    module, _, attribute = name.rpartition(".")
    builder = TorchBuilder(lambda _key, _nbytes: None)
    for make in (
        lambda ref: builder.call(ref, args),
        lambda ref: builder.new(ref, args, {}),
        lambda ref: builder.build(builder.call(ref, ()), args),
    ):
        with suppress(CkptError):
            make(GlobalRef(module, attribute))


# -------------------------------------------------------------------------- what torch itself makes


@pytest.mark.parametrize("path", sorted((FIXTURES / "formats" / "numpy").glob("*.p*")), ids=str)
def test_arrays_of_numpy_1_and_2(path):
    if path.suffix == ".pt":
        assert_reads_like(path, torch.load(path, weights_only=False))
    else:
        assert_reads_like(path, pickle.loads(path.read_bytes()))


def test_jagged_tensors_are_objects_with_tensors(tmp_path):
    ragged = torch.nested.nested_tensor([torch.ones(3), torch.ones(5)], layout=torch.jagged)
    torch.save({"ragged": ragged}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        found = {address[1:]: ref.shape for address, ref in tensors(checkpoint.tree)}
    assert found[("_values",)] == (8,)
    assert found[("_offsets",)] == (3,)


def saved_by_one_of_two(path, placement):
    """A DTensor of a mesh of two processes, as the first of them saves it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        local = DTensor.from_local(torch.ones(2, 3), mesh, [placement], run_check=False)
        torch.save({"w": local}, path)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["Shard", "Partial"])
def test_distributed_tensors_hold_their_local_part(kind, tmp_path):
    from torch.distributed import tensor

    placement = tensor.Shard(0) if kind == "Shard" else tensor.Partial()
    saved_by_one_of_two(tmp_path / "d.pt", placement)
    with open_checkpoint(tmp_path / "d.pt") as checkpoint:
        found = checkpoint.tree["w"]
        assert isinstance(found, CompositeTensor)
        assert found.shape == ((4, 3) if kind == "Shard" else (2, 3))
        assert found.parts["_local_tensor"].shape == (2, 3)


def test_a_replicated_tensor_is_the_plain_one(tmp_path):
    from torch.distributed.tensor import Replicate

    saved_by_one_of_two(tmp_path / "d.pt", Replicate())
    with open_checkpoint(tmp_path / "d.pt") as checkpoint:
        found = checkpoint.tree["w"]
        assert found.subclass == "torch.distributed.tensor.DTensor"
        plain = replace(found, subclass=None)
        Comparison(checkpoint.reader).same_tensor(plain, torch.ones(2, 3), "w")


def test_modules_flatten_to_their_state_dict(tmp_path):
    torch.manual_seed(0)
    net = samples.TinyNet()
    torch.save(net, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        state_dict = module_state_dict(checkpoint.tree)
        assert list(state_dict) == list(net.state_dict())
        assert "grid" not in state_dict  # not persistent
        assert state_dict["encoder.weight"] == state_dict["layers.0.weight"]  # shared


def test_sparse_parts_are_named(tmp_path):
    torch.save(samples.sparse(), tmp_path / "sparse.pt")
    with open_checkpoint(tmp_path / "sparse.pt") as checkpoint:
        csc = checkpoint.tree["csc"]
        assert isinstance(csc, CompositeTensor)
        assert (csc.layout, csc.shape) == ("sparse_csc", (2, 4))
        assert list(csc.parts) == ["ccol_indices", "row_indices", "values"]


def test_parameters_of_torch_0_3_are_their_tensor():
    data = (
        b"ctorch.autograd.variable\nVariable\nctorch._utils\n_rebuild_tensor\n"
        b"((U\7storagectorch\nFloatStorage\nU\x010U\3cpuK\2tQK\0(K\2t(K\1ttR\x85R."
    )
    assert isinstance(read(data), TensorRef)


def test_snapshot_classes_with_their_source_code():
    meta = {"class_name": "Generator", "module_src": "import os", "state": {"z_dim": 512}}
    made = CALLS["torch_utils.persistence._reconstruct_persistent_obj"](meta)
    assert (made.qualname, made.attributes) == ("Generator", {"z_dim": 512})


def test_arrays_must_have_their_bytes():
    with pytest.raises(DamagedError, match="takes 12 bytes, has 8"):
        CALLS["numpy._core.numeric._frombuffer"](bytes(8), Opaque("numpy.dtype", ("f4",)), (3,))


def test_array_of_objects_is_a_list():
    stream = io.BytesIO()
    pickle.dump(samples.numpy_values()["objects"], stream)
    found = read(stream.getvalue())
    assert isinstance(found, ArrayRef)
    assert (found.span, found.objects) == (None, [{"a": 1}, None])


# ------------------------------------------------------------------ what would never come to an end


def endless(use: bytes) -> bytes:
    """A pickle of a pair that holds a pair twice, that holds a pair twice, and so on."""
    levels = b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60))
    return b"\x80\2K\1\x85q\x000" + levels + use.replace(b"IT", b"h\x3c")


ENDLESS = {
    "path": b"cpathlib\nPosixPath\nIT\x85R.",
    "set": b"c__builtin__\nset\n]ITa\x85R.",
    "dict": b"c__builtin__\ndict\n]ITK\1\x86a\x85R.",
    "key": b"}ITK\1s.",
    "encoding": b"c_codecs\nencode\nU\1aIT\x86R.",
    "element type": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(IT))\x89tR.",
    "sizes": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\nIT)\x89tR.",
    "persistent id": b"(ITITITITK\1tQ.",
    "storage key": b"(U\7storagectorch\nFloatStorage\nITU\3cpuK\1tQ.",
    "storage class": b"(U\7storageITU\x010U\3cpuK\1tQ.",
    "array type": b"cnumpy\ndtype\nIT\x85Rcnumpy._core.multiarray\nscalar\nh\0U\1a\x86R.",
    "class name": (
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}U\x0aclass_nameITs\x85R."
    ),
}


@pytest.mark.parametrize("use", ENDLESS)
def test_shared_structure_is_never_unfolded(use):
    """``repr``, ``hash`` and ``str`` of such a value take 2^60 steps."""
    with suppress(DamagedError):
        read(endless(ENDLESS[use]))


COPIES = {
    "bytes": b"c_codecs\nencode\nX" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"\x85",
    "list": b"c__builtin__\nlist\n](" + b"N" * (1 << 20) + b"e\x85",
    "tuple": b"c__builtin__\ntuple\n](" + b"N" * (1 << 20) + b"e\x85",
    "pairs": b"ccollections\nOrderedDict\n](" + b"]" * (1 << 20) + b"e\x85",
}


@pytest.mark.parametrize(
    ("call", "opcode"),
    [
        *((call, b"R") for call in COPIES.values()),
        *((COPIES[name], b"\x81") for name in ("bytes", "tuple")),  # a list is filled by __init__
    ],
)
def test_copies_run_out(call, opcode):
    """Two megabytes of pickle must not become two hundred gigabytes of lists."""
    name, _, args = call.partition(b"\n")
    function, _, args = args.partition(b"\n")
    prepared = name + b"\n" + function + b"\nq\1" + args + b"q\2(h\1h\2"
    with pytest.raises(DamagedError):
        read(b"\x80\2" + prepared + opcode + (b"h\1h\2" + opcode) * (2 * MIN_WORK >> 20) + b"t.")


@pytest.mark.parametrize("shape", [(1 << 32, 1 << 32), (1 << 16,) * 4, (2, 1 << 63)])
def test_sizes_whose_product_overflows_are_refused_though_a_stride_of_0_makes_them_fit(shape):
    storage = StorageRef(BY_NAME["float32"], ByteSpan(Memory(bytes(4)), 0, 4))
    with pytest.raises(DamagedError, match="more elements than can be counted"):
        tensor_view(storage, 0, shape, (0,) * len(shape))

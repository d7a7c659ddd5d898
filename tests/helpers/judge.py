"""Compares what ckptool reads with what the other party (torch, pickle) loads from the same file.

The one idea: walk both side by side. Wherever the other party has a live object, ckptool has data
that must say the same: a tensor and its reference, a module and its state dict, an instance and
its attributes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from argparse import Namespace
from collections import deque
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor, nn

from ckptool.formats import open_checkpoint
from ckptool.tree.modules import module_state_dict
from ckptool.tree.nodes import (
    ArrayRef,
    BytesRef,
    CompositeTensor,
    GlobalRef,
    Opaque,
    StorageRef,
    TensorRef,
)
from helpers.values import array_of, element_bytes, strided


def assert_reads_like(path, loaded, *, ties: bool = True) -> None:
    """The file at ``path`` reads as ``loaded``, which the judge made of it; by default ties too."""
    with open_checkpoint(path) as checkpoint:
        comparison = Comparison(checkpoint.reader)
        comparison.same(checkpoint.tree, loaded)
        if ties:
            comparison.same_ties()


class Comparison:
    """Asserts that nodes are what was loaded, and remembers storages to compare their sharing."""

    def __init__(self, reader) -> None:
        self.reader = reader
        self.storages: list[tuple[tuple, int]] = []  # (our place, their address) of each tensor

    def same(self, node, loaded, at: str = "") -> None:
        """``node`` is ``loaded``, at all depths."""
        for kind, compare in self.rules():
            if isinstance(loaded, kind):
                compare(node, loaded, at)
                return
        raise AssertionError(f"{at}: nothing compares {loaded!r}")

    def rules(self):
        """Which kind of object is compared how; the first that fits."""
        return (
            (Tensor, self.same_tensor),
            ((torch.UntypedStorage, torch.TypedStorage), self.same_storage),
            (nn.Module, self.same_module),
            (torch.Size, lambda node, loaded, at: self.same(node, tuple(loaded), at)),
            (torch.dtype, self.same_name),
            (torch.device, lambda node, loaded, at: self.same(node.args[0], loaded.type, at)),
            (np.ndarray, self.same_array),
            (np.generic, self.same_scalar),
            (enum.Enum, lambda node, loaded, at: self.same(node.args, (loaded.value,), at)),
            (PurePath, lambda node, loaded, at: self.same(str(node), str(loaded), at)),
            (functools.partial, self.same_partial),
            (Namespace, self.same_attributes),
            (dict, self.same_dict),
            ((list, deque), self.same_list),
            (tuple, self.same_tuple),
            ((set, frozenset), self.same_set),
            ((bytes, bytearray), self.same_bytes),
            (type, self.same_name),
            ((type(len), type(lambda: 0)), self.same_name),
            (np.dtype, lambda node, loaded, at: self.same(node.args[0], loaded.str[1:], at)),
            (object, self.same_object),
        )

    # ---------------------------------------------------------------------------------- tensors

    def same_tensor(self, node, loaded: Tensor, at: str) -> None:
        if loaded.layout is not torch.strided or (
            loaded.is_nested and loaded.layout is torch.strided
        ):
            self.same_composite(node, loaded, at)
            return
        assert isinstance(node, TensorRef), f"{at}: {node!r}"
        assert node.dtype.name == str(loaded.dtype).removeprefix("torch."), at
        assert node.shape == tuple(loaded.shape), at
        assert node.requires_grad == loaded.requires_grad, at
        assert (("conj" in node.lazy), ("neg" in node.lazy)) == (loaded.is_conj(), loaded.is_neg())
        plain = type(loaded) in {Tensor, nn.Parameter, nn.Buffer}
        assert node.subclass == (None if plain else python_name(type(loaded))), at
        if loaded.is_quantized:
            self.same_quantizer(node, loaded, at)
        if loaded.device.type == "meta":
            assert node.chunks == (), at
            return
        (chunk,) = node.chunks
        assert chunk.shape == node.shape, at
        assert chunk.strides == loaded.stride(), at
        assert element_bytes(self.reader, node) == tensor_bytes(loaded), at
        self.note_storage(chunk.span, loaded, node.dtype.itemsize)

    def note_storage(self, span, loaded: Tensor, itemsize: int) -> None:
        if loaded.numel():
            begin = span.offset - loaded.storage_offset() * itemsize
            place, address = (span.source, begin), loaded.untyped_storage().data_ptr()
            self.storages.append((place, address))

    def same_ties(self) -> None:
        """Tensors share a place in the file exactly when they share memory."""
        ours = {place for place, _ in self.storages}
        theirs = {address for _, address in self.storages}
        assert len(ours) == len(theirs) == len(set(self.storages))

    def same_quantizer(self, node: TensorRef, loaded: Tensor, at: str) -> None:
        assert node.quantizer is not None, at
        if loaded.qscheme() is torch.per_tensor_affine:
            assert node.quantizer.scheme == "per_tensor_affine"
            self.same(node.quantizer.scale, loaded.q_scale(), at)
            self.same(node.quantizer.zero_point, loaded.q_zero_point(), at)
            return
        assert node.quantizer.scheme.startswith("per_channel_affine")
        assert node.quantizer.axis == loaded.q_per_channel_axis()
        same_values(self.reader, node.quantizer.scale, loaded.q_per_channel_scales())
        same_values(self.reader, node.quantizer.zero_point, loaded.q_per_channel_zero_points())

    def same_composite(self, node, loaded: Tensor, at: str) -> None:
        assert isinstance(node, CompositeTensor), f"{at}: {node!r}"
        parts = composite_parts(loaded)
        assert node.parts.keys() == parts.keys(), at
        for name, part in parts.items():
            self.same_tensor(node.parts[name], part, f"{at}/{name}")
        if not loaded.is_nested:
            assert node.layout == str(loaded.layout).removeprefix("torch."), at
            assert node.shape == tuple(loaded.shape), at

    def same_storage(self, node, loaded, at: str) -> None:
        assert isinstance(node, StorageRef), f"{at}: {node!r}"
        untyped = loaded if isinstance(loaded, torch.UntypedStorage) else loaded.untyped()
        assert self.reader.read(node.span) == storage_bytes(untyped), at

    # ---------------------------------------------------------------------------------- objects

    def same_module(self, node, loaded: nn.Module, at: str) -> None:
        assert isinstance(node, Opaque), f"{at}: {node!r}"
        assert node.is_module, f"{at}: {node!r}"
        self.same_type_name(node, type(loaded), at)
        self.same(module_state_dict(node), dict(loaded.state_dict(keep_vars=True)), at)

    def same_array(self, node, loaded: np.ndarray, at: str) -> None:
        assert isinstance(node, ArrayRef), f"{at}: {node!r}"
        assert node.shape == loaded.shape, at
        if loaded.dtype == object:
            self.same(node.objects, loaded.ravel().tolist(), at)
            return
        ours = array_of(self.reader, node)  # numpy swaps big-endian values when it loads
        assert ours.dtype.newbyteorder("=") == loaded.dtype.newbyteorder("="), at
        assert ours.astype(loaded.dtype).tobytes() == loaded.tobytes(), at

    def same_scalar(self, node, loaded: np.generic, at: str) -> None:
        if isinstance(node, Opaque):  # a date: numpy's type and its bytes
            assert np.frombuffer(node.args[1], np.dtype(node.args[0]))[0] == loaded, at
            return
        self.same(node, loaded.item(), at)

    def same_partial(self, node, loaded: functools.partial, at: str) -> None:
        assert isinstance(node, Opaque), at
        state = (loaded.func, loaded.args, loaded.keywords, loaded.__dict__ or None)
        self.same(node.state, state, at)

    def same_object(self, node, loaded, at: str) -> None:
        if loaded is None or isinstance(loaded, (bool, int, float, complex, str)):
            assert type(node) is type(loaded), f"{at}: {node!r} is not {loaded!r}"
            assert node == loaded or (loaded != loaded and math.isnan(node)), at
            return
        self.same_attributes(node, loaded, at)

    def same_attributes(self, node, loaded, at: str) -> None:
        assert isinstance(node, Opaque), f"{at}: {node!r} is not {loaded!r}"
        self.same_type_name(node, type(loaded), at)
        wanted = (
            {f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)}
            if dataclasses.is_dataclass(loaded)
            else vars(loaded)
        )
        self.same_dict(node.attributes, wanted, at)

    def same_type_name(self, node: Opaque, cls: type, at: str) -> None:
        assert node.qualname == f"{cls.__module__}.{cls.__qualname__}", at

    def same_name(self, node, loaded, at: str) -> None:
        assert isinstance(node, GlobalRef), f"{at}: {node!r}"
        name = str(loaded) if isinstance(loaded, torch.dtype) else python_name(loaded)
        assert node.qualname.replace("__builtin__.", "builtins.") == name, at

    # ------------------------------------------------------------------------------- containers

    def same_dict(self, node, loaded: dict, at: str) -> None:
        node = node.items if isinstance(node, Opaque) else node
        assert isinstance(node, dict), f"{at}: {node!r}"
        assert len(node) == len(loaded), at
        for (our_key, ours), (their_key, theirs) in zip(node.items(), loaded.items(), strict=True):
            self.same(our_key, their_key, f"{at}/<key>")
            self.same(ours, theirs, f"{at}/{their_key}")

    def same_list(self, node, loaded, at: str) -> None:
        node = node.elements if isinstance(node, Opaque) else node
        assert isinstance(node, list), f"{at}: {node!r}"
        self.same_sequence(node, loaded, at)

    def same_tuple(self, node, loaded: tuple, at: str) -> None:
        if isinstance(node, Opaque):  # a named tuple
            self.same_type_name(node, type(loaded), at)
            node = node.args
        assert isinstance(node, tuple), f"{at}: {node!r}"
        self.same_sequence(node, loaded, at)

    def same_sequence(self, node, loaded, at: str) -> None:
        assert len(node) == len(loaded), at
        for index, (ours, theirs) in enumerate(zip(node, loaded, strict=True)):
            self.same(ours, theirs, f"{at}/{index}")

    def same_set(self, node, loaded, at: str) -> None:
        assert isinstance(node, type(loaded)), f"{at}: {node!r}"
        assert node == loaded, at

    def same_bytes(self, node, loaded, at: str) -> None:
        data = self.reader.read(node.span) if isinstance(node, BytesRef) else node
        assert isinstance(data, (bytes, bytearray)), f"{at}: {node!r}"
        assert data == loaded, at


def python_name(loaded) -> str:
    """The name of a class or function, as Python 3 has it."""
    return f"{loaded.__module__}.{loaded.__qualname__}"


def same_values(reader, ref: TensorRef, loaded: Tensor) -> None:
    """Equal elements, whatever the strides; torch makes new tensors of quantization parameters."""
    assert ref.shape == tuple(loaded.shape)
    assert element_bytes(reader, ref) == tensor_bytes(loaded.to(getattr(torch, ref.dtype.name)))


def composite_parts(loaded: Tensor) -> dict[str, Tensor]:
    """The plain tensors that a sparse or nested one consists of."""
    if loaded.is_nested:
        return {
            "values": loaded.values(),
            "sizes": loaded._nested_tensor_size(),
            "strides": loaded._nested_tensor_strides(),
            "storage_offsets": loaded._nested_tensor_storage_offsets(),
        }
    if loaded.layout is torch.sparse_coo:
        return {"indices": loaded._indices(), "values": loaded._values()}
    if loaded.layout in {torch.sparse_csr, torch.sparse_bsr}:
        names = ("crow_indices", "col_indices", "values")
    else:
        names = ("ccol_indices", "row_indices", "values")
    return {name: getattr(loaded, name)() for name in names}


def tensor_bytes(loaded: Tensor) -> bytes:
    """The elements in C order, straight from the storage: it works for every element type."""
    stored = storage_bytes(loaded.untyped_storage())
    if loaded.dtype in {torch.quint4x2, torch.quint2x4}:
        return stored
    itemsize = loaded.element_size()
    start = loaded.storage_offset() * itemsize
    return strided(
        stored[start : start + (len(stored) - start) // itemsize * itemsize],
        itemsize,
        tuple(loaded.shape),
        loaded.stride(),
    )


def storage_bytes(storage: torch.UntypedStorage) -> bytes:
    """All of a storage."""
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy().tobytes()

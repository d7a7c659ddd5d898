"""``TORCH_CALLS``: functions of torch that make tensors, with ours that make references.

Sources: torch 2.13 ``torch/_utils.py``, ``torch/_tensor.py``, ``torch/storage.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptool.dtypes import BY_NAME
from ckptool.errors import DamagedError
from ckptool.formats.pickles.local_parts import UNINITIALIZED
from ckptool.formats.pickles.machine import name_of
from ckptool.formats.pickles.python_calls import persistent_class, tensordict, torch_size
from ckptool.formats.pickles.tensor_views import (
    Call,
    dtype_of,
    kind_of,
    last_name,
    sizes_of,
    tensor_view,
)
from ckptool.records import replace
from ckptool.tree.nodes import CompositeTensor, Opaque, Quantizer, StorageRef, TensorRef


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    return tensor_view(storage, offset, shape, strides)


def _rebuild_tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    _hooks: Any,
    metadata: Any = None,
) -> TensorRef:
    made = tensor_view(storage, offset, shape, strides)
    if metadata:
        made = _with_bits(made, metadata)
    return _with_grad(made, requires_grad)


def _with_grad(ref: TensorRef, requires_grad: Any) -> TensorRef:
    """Return the tensor with its flag: a bool, True only for floating-point or complex dtypes."""
    if requires_grad is False:
        return ref
    if requires_grad is not True:
        raise DamagedError(f"requires_grad must be a bool, not {kind_of(requires_grad)}")
    if not (ref.dtype.is_floating or ref.dtype.kind == "complex"):
        raise DamagedError(f"a {ref.dtype} tensor cannot require gradients")
    return replace(ref, requires_grad=True)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorRef:
    made = tensor_view(storage, offset, shape, strides, dtype_of(dtype))
    if metadata:
        made = _with_bits(made, metadata)
    return _with_grad(made, requires_grad)


def _with_bits(ref: TensorRef, metadata: Any) -> TensorRef:
    """Return the tensor with the operations that torch applies on read: conj and neg."""
    if not isinstance(metadata, dict):
        raise DamagedError(f"the metadata of a tensor is {kind_of(metadata)} instead of a dict")
    if not all(type(bit) is str and type(is_set) is bool for bit, is_set in metadata.items()):
        raise DamagedError("the metadata of a tensor is something else than flags by name")
    # torch sets a bit that is named, also where its value is False.
    bits = tuple(bit for bit in ("conj", "neg") if bit in metadata)
    is_complex, has_sign = ref.dtype.kind == "complex", ref.dtype.name in _SIGNED
    if ("conj" in bits and not is_complex) or ("neg" in bits and not (is_complex or has_sign)):
        raise DamagedError(f"a {ref.dtype} tensor is marked {' and '.join(bits)}")
    return replace(ref, lazy=bits)


# The real dtypes that torch negates.
_SIGNED = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"}
)


def _rebuild_qtensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    params: Any,
    requires_grad: Any,
    _hooks: Any,
) -> TensorRef:
    scheme, scale, zero_point, *axis = params
    quantizer = Quantizer(last_name(scheme), scale, zero_point, axis[0] if axis else None)
    more: dict[str, Any] = {"requires_grad": bool(requires_grad), "quantizer": quantizer}
    return tensor_view(storage, offset, shape, strides, **more)


def _quantizer_fault(
    storage: Any, _offset: Any, shape: Any, _strides: Any, params: Any, *_rest: Any, **_more: Any
) -> str | None:
    """Return why torch refuses a quantized tensor with these parameters; None if it does not."""
    scheme, *numbers = params
    name, sizes = last_name(scheme), sizes_of(shape)
    if name not in _CHANNELS:
        return f"a quantized tensor has the scheme {name!r:.60}, of which torch builds none"
    if storage.dtype.kind != "quantized":
        return f"a quantized tensor is made of {storage.dtype} values"
    if len(numbers) != (3 if _CHANNELS[name] else 2):
        return f"the {name} quantizer of a tensor has {len(numbers)} parameters"
    return _channels_fault(sizes, *numbers) if _CHANNELS[name] else _scale_fault(*numbers)


def _scale_fault(scale: Any, zero_point: Any) -> str | None:
    if type(scale) in {int, float, TensorRef} and type(zero_point) in {int, TensorRef}:
        return None
    return "the scale and zero point of a quantized tensor are no numbers"


def _channels_fault(sizes: tuple[int, ...], scales: Any, zero_points: Any, axis: Any) -> str | None:
    if type(axis) is not int or not 0 <= axis < len(sizes):
        return f"the axis of a quantizer is none of a tensor of shape {list(sizes)}"
    lengths = _length(scales), _length(zero_points)
    if lengths == (sizes[axis], sizes[axis]) and type(scales) is type(zero_points):
        return None
    return (
        f"a tensor of shape {list(sizes)} is quantized along its axis {axis} with "
        f"{_counted(lengths[0])} scales and {_counted(lengths[1])} zero points"
    )


# Scheme -> whether its parameters are per channel.
_CHANNELS = {
    "per_tensor_affine": False,
    "per_channel_affine": True,
    "per_channel_affine_float_qparams": True,
}


def _length(numbers: Any) -> int | None:
    """Return the length of a list of numbers or of a tensor with one dimension; else None."""
    if type(numbers) is list:
        return len(numbers) if all(type(n) in {int, float, bool} for n in numbers) else None
    is_row = isinstance(numbers, TensorRef) and len(numbers.shape) == 1
    return numbers.shape[0] if is_row else None


def _counted(length: int | None) -> str:
    return "no row of" if length is None else str(length)


def _nested_fault(*_args: Any, has_views: bool) -> str | None:
    """Object to the older container: its tensor values, so these sizes too, follow the object."""
    if not has_views:
        return None
    return (
        "a nested tensor in a file of the older container: torch builds it before it has read "
        "its sizes"
    )


FAULTS: Mapping[str, Callable[..., str | None]] = {
    "torch._utils._rebuild_qtensor": _quantizer_fault,
    "torch._utils._rebuild_nested_tensor": _nested_fault,
}


def _rebuild_meta_tensor(dtype: Any, shape: Any, _strides: Any, requires_grad: Any) -> TensorRef:
    return TensorRef(
        dtype_of(dtype), sizes_of(shape), (), device="meta", requires_grad=bool(requires_grad)
    )


def _rebuild_parameter(data: Any, requires_grad: Any, _hooks: Any) -> Any:
    if not isinstance(data, TensorRef):
        if not isinstance(data, (Opaque, CompositeTensor)) and data is not None:
            raise DamagedError(f"a parameter is made of {kind_of(data)} instead of a tensor")
        return data
    if data.requires_grad is requires_grad:
        return data
    return _with_grad(replace(data, requires_grad=False), requires_grad)


def _rebuild_parameter_with_state(data: Any, requires_grad: Any, hooks: Any, state: Any) -> Any:
    if not is_object_state(state):
        raise DamagedError(f"a parameter is given attributes by {kind_of(state)}")
    check_attributes(state)
    made = _rebuild_parameter(data, requires_grad, hooks)
    return replace(made, state=state) if isinstance(made, TensorRef) else made


# Attributes whose assignment changes the values or the class of a tensor; no tensor is saved with
# them, since they are properties of the class.
_SETTERS = frozenset({"data", "real", "imag", "__class__"})


def check_attributes(state: Any) -> None:
    """Refuse attributes that change the values of the tensor that they are set on.

    Raises:
        DamagedError: there is one, or one whose name is no plain text.
    """
    for part in state if isinstance(state, tuple) else (state,):
        for name in part if isinstance(part, dict) else ():
            if type(name) is not str or name in _SETTERS:
                shown = repr(name) if type(name) is str else f"<{kind_of(name)}>"
                raise DamagedError(
                    f"a tensor is given the attribute {shown}, which may replace its values; "
                    "torch.save writes no such attribute"
                )


_REPLACING = frozenset({4, 5})  # lengths of the states that Tensor.__setstate__ takes values from


def keeps_values(obj: TensorRef | CompositeTensor | StorageRef, state: Any) -> bool:
    """Return whether BUILD leaves a tensor as it is; if not, no tensor can have such a state.

    Before torch 0.4 the state was the flags of a Variable. ``Tensor.__setstate__`` and the ``set_``
    of the safe loader take others too. They give the tensor other values, here and wherever else it
    was put before. The attributes of a storage are its dtype and its bytes.

    Raises:
        DamagedError: the state may replace the values.
    """
    if isinstance(obj, TensorRef) and obj.subclass is None:
        if type(state) is tuple and len(state) == 3 and type(state[0]) is bool:
            return True
    elif not isinstance(obj, StorageRef) and _of_subclass(state):
        return isinstance(obj, TensorRef)
    what = "a storage" if isinstance(obj, StorageRef) else f"a tensor of shape {list(obj.shape)}"
    raise DamagedError(
        f"{what} is given a state that may replace its values",
        hint="torch.save writes no such file; load it in a sandbox, and save the tensors again",
    )


def _of_subclass(state: Any) -> bool:
    return not isinstance(state, (tuple, list)) or len(state) not in _REPLACING


def is_object_state(state: Any) -> bool:
    """Return whether ``state`` is an object's: attributes, and maybe the values of its slots."""
    parts = state if isinstance(state, tuple) else (state,)
    return len(parts) == (2 if isinstance(state, tuple) else 1) and all(
        part is None or isinstance(part, dict) for part in parts
    )


def _parameter(data: Any = None, requires_grad: Any = True) -> Any:
    if data is None:  # Parameter() has no values
        return Opaque("torch.nn.parameter.Parameter")
    return _rebuild_parameter(data, requires_grad, None)


def _variable(data: Any = None, *_flags: Any) -> Any:
    """Return the tensor: before torch 0.4 a tensor with a gradient was wrapped in a Variable."""
    return data


def _rebuild_device_tensor(data: Any, dtype: Any, device: Any, requires_grad: Any) -> Any:
    """Return a tensor of a device without storage (XLA), saved as a CPU tensor or an array."""
    if not isinstance(data, TensorRef):
        return data
    wanted, place = dtype_of(dtype), last_name(device)
    if place == "meta":
        return TensorRef(wanted, data.shape, (), device=place)
    if wanted is not data.dtype:  # torch.save writes the dtype of the tensor itself
        return CompositeTensor(CONVERTED, wanted, data.shape, {"values": data})
    return replace(data, device=place, requires_grad=bool(requires_grad))


CONVERTED = "converted"  # layout of a tensor whose values torch casts as it loads them


COMPRESSED = {
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}


def _rebuild_sparse_tensor(layout: Any, data: Any) -> CompositeTensor:
    name = last_name(layout)
    if name == "sparse_coo":
        indices, values, shape, *_is_coalesced = data
        if len(_is_coalesced) > 1:
            raise DamagedError(f"a sparse tensor is described by {len(data)} values")
        parts = {"indices": indices, "values": values}
    else:
        compressed, plain, values, shape = data
        parts = dict(zip(COMPRESSED[name], (compressed, plain), strict=True))
        parts["values"] = values
    return _composite(name, values, sizes_of(shape), parts)


def _rebuild_nested_tensor(values: Any, sizes: Any, strides: Any, offsets: Any) -> CompositeTensor:
    parts = {"values": values, "sizes": sizes, "strides": strides, "storage_offsets": offsets}
    return _composite("nested", values, values.shape, parts)


def _composite(
    layout: str, values: Any, shape: tuple[int, ...], parts: dict[str, Any]
) -> CompositeTensor:
    wrong = [name for name, part in parts.items() if not isinstance(part, TensorRef)]
    if wrong:
        raise DamagedError(f"a {layout} tensor whose {wrong[0]} are no tensor")
    return CompositeTensor(layout, values.dtype, shape, parts)


def _rebuild_wrapper_subclass(cls: Any, *args: Any) -> CompositeTensor:
    """Return a tensor subclass without own data (DTensor and the like): its state has its parts.

    ``args`` are dtype, size, strides, offset, layout, device, requires_grad.
    """
    dtype, size, *_ = args
    return CompositeTensor(
        name_of(cls), dtype_of(dtype), sizes_of(size), {}, Opaque(name_of(cls), args)
    )


def _uninitialized(*_settings: Any) -> CompositeTensor:
    """Return a parameter of a lazy layer that saw no batch: it has no shape and no values."""
    return CompositeTensor(UNINITIALIZED, BY_NAME["float32"], (0,), {})


def _graph_module(body: Any, *_code: Any) -> Any:
    """Return a module of ``torch.fx``: its attributes, and the source code of its ``forward``.

    Source: torch 2.13 ``torch/fx/graph_module.py``, ``GraphModule.__reduce__``.
    """
    fields = body if isinstance(body, dict) else {}
    return Opaque(GRAPH_MODULE, _code, state=fields)


GRAPH_MODULE = "torch.fx.graph_module.GraphModule"


def _same(value: Any, _type: Any = None) -> Any:
    """Return the value as it is: TorchScript only tags it with the type of a list."""
    return value


# fmt: off
TORCH_CALLS: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_qtensor": _rebuild_qtensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter_with_state,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse_tensor,
    "torch._utils._rebuild_sparse_csr_tensor": _rebuild_sparse_tensor,
    "torch._utils._rebuild_nested_tensor": _rebuild_nested_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _rebuild_device_tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": _rebuild_device_tensor,
    "torch._utils._rebuild_xla_tensor": _rebuild_device_tensor,
    "torch._utils._rebuild_wrapper_subclass": _rebuild_wrapper_subclass,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.parameter.Buffer": _parameter,
    "torch.nn.parameter.UninitializedParameter": _uninitialized,
    "torch.nn.parameter.UninitializedBuffer": _uninitialized,
    "torch.autograd.variable.Variable": _variable,
    "torch.fx.graph_module.reduce_graph_module": _graph_module,
    "torch.Size": torch_size,
    **{
        f"torch.jit._pickle.{name}": _same
        for name in (
            "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist",
            "restore_type_tag",
        )
    },
    "torch_utils.persistence._reconstruct_persistent_obj": persistent_class,
    "tensordict._reductions._make_td": tensordict,
}

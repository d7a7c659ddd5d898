"""Looks at the arguments of calls: parts that are looked up, plain values, devices and layouts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS
from ckptool.formats.pickles.imported import may_be_acting_method
from ckptool.formats.pickles.machine import name_of
from ckptool.formats.pickles.torch_calls import COMPRESSED
from ckptool.formats.pickles.trust import MODULES, OWN_PACKAGES, REACHING, STDLIB, is_own
from ckptool.formats.pickles.vetted import PLAIN_OBJECTS
from ckptool.names import is_capital, says
from ckptool.regex import regex
from ckptool.tree.nodes import (
    ArrayRef,
    BytesRef,
    GlobalRef,
    NotedDict,
    NotedList,
    Opaque,
    TensorRef,
)

MAX_PARTS = 1 << 10  # of a value; one that has more is not looked through

_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), BytesRef, TensorRef, ArrayRef)
_BYTES = (bytes, bytearray, BytesRef, ArrayRef)
# Matches a path, a URL, a command line or code. An enum member's value is a word ("adamw", "v1.5").
_REACHES = regex(
    r"[/\\\s]|^[.~]|^[A-Za-z]:|\.[A-Za-z][A-Za-z0-9]{0,4}$"
    r"|\.(ckpt|parquet|safetensors|sqlite3|torrent)$|(?=.*\w)[;&|$`<>(){}\"'*%\0]"
)
_MAX_WORD = 100  # characters; a longer text is no name of a member or a setting

# Python 2 and mmengine pickle a method as ``getattr(Class, "name")``. Nothing runs until it is
# called, and that would be a call of something that is no name.
LOOKUPS = frozenset({"builtins.getattr", "__builtin__.getattr"})
_TENSORS = frozenset({
    "torch.Tensor", "torch._C.TensorBase", "torch._C._TensorBase", "torch._C._VariableFunctions",
    "torch._C._VariableFunctionsClass",
})  # fmt: skip
_ACTING = frozenset({"apply_", "map_", "map2_", "module_load", "from_file"})
# The one private part of a class that a pickle may look up: a time zone is pickled with it.
_UNPICKLE_ZONE = GlobalRef("zoneinfo", "ZoneInfo._unpickle")
_ZONE = (GlobalRef("zoneinfo", "ZoneInfo"), "_unpickle")
_TYPE = frozenset({"builtins.type", "__builtin__.type"})  # ``type(None)`` is pickled as this call
_NONE_TYPE = GlobalRef("builtins", "NoneType")


def part_of(target: GlobalRef | Opaque, name: str) -> GlobalRef:
    """Return the name of a part of ``target``: a name, or the result of a lookup or a call."""
    if isinstance(target, GlobalRef):
        return GlobalRef(target.module, f"{target.name}.{name}")
    if not _is_part_of_class(target.args):  # the target is the result of a call
        return GlobalRef("", f"{name_of(target)}.{name}")
    owner, part = target.args
    return GlobalRef(owner.module, f"{owner.name}.{part}.{name}")


def _is_part_of_class(args: tuple[Any, ...]) -> bool:
    """Return whether ``args`` name a class, by its capital, and one of its public parts.

    A part of a module is none: ``torch.os`` is a module, like much else that a module imports.
    """
    if len(args) != 2 or not isinstance(args[0], GlobalRef):
        return False
    owner, name = args
    return (
        is_capital(owner.name)
        and isinstance(name, str)
        and name.isidentifier()
        and not name.startswith("_")
        and _may_look_up(owner, name)
    )


def _may_look_up(owner: GlobalRef, name: str) -> bool:
    """Return whether a part of a class neither opens, writes nor calls anything by itself."""
    root, qualname = owner.module.partition(".")[0], owner.qualname
    if root not in STDLIB and root not in OWN_PACKAGES:
        return not says(name, REACHING) and not may_be_acting_method(qualname, name)
    if qualname in _TENSORS:
        return name not in _ACTING
    return is_capital(name) or qualname.startswith(("torch.nn.modules.", "torch.optim."))


def class_in_class(func: Any) -> GlobalRef | None:
    """Return the class of ``getattr(Outer, "Inner")``, as protocols 0 to 3 name inner classes."""
    if not isinstance(func, Opaque) or not func.called or func.qualname not in LOOKUPS:
        return None
    is_class = _is_part_of_class(func.args) and is_capital(func.args[1])
    return part_of(*func.args) if is_class else None


def part_looked_up(func: GlobalRef, args: tuple[Any, ...]) -> Any:
    """Return the result of a call that only looks up a part; None for every other call."""
    if func.qualname in LOOKUPS:
        if _is_part_of_class(args):
            return Opaque(func.qualname, args, called=True)
        return _UNPICKLE_ZONE if args == _ZONE else None
    return _NONE_TYPE if func.qualname in _TYPE and args == (None,) else None


def is_value(ref: GlobalRef) -> bool:
    """Return whether a name is a dtype or storage of torch, neither of which can be called."""
    module, name = ref.module, ref.name
    if module.partition(".")[0] != "torch":
        return False
    return (name in BY_NAME and module == "torch") or name in BY_STORAGE_CLASS


_DEVICE_TYPES = frozenset({
    "cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia",
    "xla", "lazy", "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone", "npu", "mlu", "musa",
})  # fmt: skip
_LAYOUTS = frozenset(
    f"torch.{name}" for name in ("strided", "_mkldnn", "jagged", "sparse_coo", *COMPRESSED)
)


def _is_device(args: tuple[Any, ...]) -> bool:
    """Return whether ``torch.device(*args)`` is valid: ``("cuda", 0)``, ``("cuda:0",)``."""
    if len(args) not in {1, 2} or type(args[0]) is not str:
        return False
    name, colon, index = args[0].partition(":")
    if name not in _DEVICE_TYPES or (colon and not (index.isascii() and index.isdigit())):
        return False
    return len(args) == 1 or (type(args[1]) is int and not colon and -1 <= args[1] < 128)


def _is_layout(args: tuple[Any, ...]) -> bool:
    return len(args) == 1 and args[0] in _LAYOUTS


# Vetted calls that stay inert, and a check of values that the loader would refuse.
CHECKED: Mapping[str, Callable[[tuple[Any, ...]], bool]] = {
    "torch.device": _is_device,
    "torch.serialization._get_layout": _is_layout,
}


def parts_of_data(value: Any) -> Collection[Any] | None:
    """Return the parts of a plain value or an object.

    Return None if it is code, names something outside the file, is an own object that is not known
    to be plain, or is too large to look through.
    """
    if isinstance(value, Opaque):
        is_known = value.qualname in PLAIN_OBJECTS or not is_own(value.qualname)
        held = (value.args, value.kwargs, value.state, value.items, value.elements)
        return held if is_known and not may_be_decoded(value) else None
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        if len(value) > MAX_PARTS:
            return None
        parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
        if isinstance(value, (NotedDict, NotedList)):
            parts += [*value.made_with.values(), value.state]
        return parts
    if isinstance(value, TensorRef):
        return (value.state,)
    if isinstance(value, ArrayRef):
        return () if value.objects is None else None
    is_plain = isinstance(value, _PLAIN) and not reaches(value)
    return () if is_plain or _is_type_of_tensors(value) else None


def may_be_decoded(made: Opaque) -> bool:
    """Return whether a user's object may be text that Python makes of bytes and an encoding."""
    given = (*made.args, *made.kwargs.values())
    return (
        len(given) > 1
        and not is_own(made.qualname)
        and any(isinstance(each, _BYTES) for each in given)
        and any(isinstance(each, str) for each in given)
    )


def reaches(value: Any) -> bool:
    """Return whether a value is text like a path, a URL, a command line or code."""
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[: _MAX_WORD + 1]).decode("latin-1")
    if isinstance(value, str):
        is_long, module = len(value) > _MAX_WORD, value.replace(":", ".").partition(".")
        is_of_module = bool(module[1]) and module[0] in MODULES  # os.system
        return is_long or is_of_module or _REACHES.search(value) is not None
    return isinstance(value, BytesRef)


def _is_type_of_tensors(value: Any) -> bool:
    """Return whether a value is a dtype such as ``torch.float32``: an enum member or a setting."""
    return isinstance(value, GlobalRef) and value.module == "torch" and value.name in BY_NAME


def is_the_loaders(target: Any) -> bool:
    """Return whether the loading process has ``target``: a name, or a part that was looked up."""
    return isinstance(target, GlobalRef) or (
        isinstance(target, Opaque) and target.called and target.qualname in LOOKUPS
    )

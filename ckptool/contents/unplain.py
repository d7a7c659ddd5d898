"""Tensors of a state dict that are not plain, and what to do about each kind.

A tensor that cannot be written as it is (a shard of one process, a quantized tensor of a library, a
sparse one, a numpy array, a placeholder without values) is refused by name, with the advice of its
:class:`Kind`. Add a new form as a row of ``COMPOSITES``, or as a kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path

from ckptool.contents.inventory import Leaf
from ckptool.errors import UnsupportedError
from ckptool.formats.pickles.local_parts import LOCAL_PARTS, UNINITIALIZED, local_parts
from ckptool.formats.pickles.torch_calls import CONVERTED
from ckptool.formats.ranked.sharding_info import DIFFERING, LAYOUT
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tree.describing import named
from ckptool.tree.nodes import CompositeTensor, Opaque, TensorRef

SHOWN = 3  # names of a kind in a message
MANY_EMPTY = 3  # fewer empty tensors are never called most of a state dict
SHOWN_TEXT = 80  # characters of the name of a class


class Kind(NamedTuple):
    """Reason why tensors are not plain, in the plural, and what to do about it."""

    id: str  # for machines: no-values, shard, flattened, wrapped, sparse, array, storage, nested
    what: str  # of several: "sparse tensors"
    advice: str


class Unplain(NamedTuple):
    """A tensor, or something with tensors in it, that cannot be written as it is."""

    kind: Kind
    detail: str = ""  # of this one: "[3, 4] of [6, 4]"


# ------------------------------------------------------------------------------------------- kinds

_GATHER = (
    "name the directory with the files of all ranks, which ckptool joins; or gather the weights "
    "before saving: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) "
    "of torch.distributed.checkpoint.state_dict; or save with torch.distributed.checkpoint.save, "
    "whose directories ckptool reads"
)
_PLAIN_COPY = (
    "load the file where that class is installed, and save plain tensors instead: "
    "dequantized, dense, or each part under a name of its own"
)

# fmt: off
SHARD = Kind("shard", "shards of which this file holds the part of one process", _GATHER)
PARTIAL = Kind("shard", "partial sums that one process holds", _GATHER)
RANK_SHARD = Kind("shard", "shards that one rank wrote, of tensors in several files",
                  "name the directory with the shards of all ranks, which ckptool joins")
DIFFERENT = Kind("shard",
                 "plain tensors that differ from rank to rank, and do not say whether they are "
                 "slices",
                 "name the file of one rank, if each has the whole; or save with "
                 "torch.distributed.checkpoint, which records where each part belongs")
FLATTENED = Kind("flattened",
                 "flattened FSDP parameters (many weights in one tensor, without their names)",
                 "name the directory with the files of all ranks, which ckptool joins if they "
                 "have fairscale's shard_metadata; of torch's FSDP, load the files in as many "
                 "processes as saved them, and save with StateDictType.FULL_STATE_DICT")
QUANTIZED = Kind("wrapped", "quantized tensors of torchao, each made of several plain ones",
                 "take the weights from the checkpoint before quantization; or load this one with "
                 "torchao, and save weight.dequantize() for each")
PACKED = Kind("packed", "packed weights of quantized layers",
              "take the weights from the checkpoint before quantization; or load this one with "
              "torch, and save layer.weight() and layer.bias() of each")
SPARSE = Kind("sparse", "sparse tensors", "save tensor.to_dense() of each instead")
NESTED_TENSOR = Kind("nested-tensor", "nested tensors (rows of several lengths in one)",
                     "save tensor.unbind() or torch.nested.to_padded_tensor(tensor, 0) instead")
SUBCLASS = Kind("wrapped", "tensors of a subclass that is made of several", _PLAIN_COPY)
META = Kind("no-values", "meta tensors, which have a shape but no values",
            "save the model after it was materialised: model.to_empty(device='cpu') and its "
            "weights loaded")
LAZY = Kind("no-values", "parameters of lazy layers, which have no values yet",
            "run one batch through the model before saving")
PLACEHOLDER = Kind("no-values",
                   "placeholders without values (shape [0]), as ZeRO stage 3 leaves them in a "
                   "state dict",
                   "name the directory with the files of all ranks, which ckptool joins; or train "
                   "with stage3_gather_16bit_weights_on_model_save and call save_16bit_model")
ARRAY = Kind("array", "numpy arrays", "load the file and save torch.from_numpy(array) of each")
STORAGE = Kind("storage", "bare storages, which have no shape",
               "save the tensor itself, not tensor.storage()")
CONTAINER = Kind("nested", "containers with tensors of their own",
                 "name the part that is meant, as ADDRESS/KEY; ckptool inspect --tensors lists "
                 "the addresses")
ALIKE = Kind("alike", "tensors whose keys are written alike, as 1 and '1' are",
             "save the weights under names that differ as text")
KEYED = Kind("keyed", "tensors whose keys are objects, not text",
             "load the file with torch, and save the weights under names that are text")
UNNAMED = Kind("nested", "arguments of an object, whose names the file does not hold",
               "load the file where that class is installed, and save its tensors in a dict: a "
               "named tuple gives one by _asdict()")
OBJECT = Kind("nested", "objects with tensors in them",
              "save the tensors of the object under names of their own: a state dict holds "
              "tensors alone")

CONVERTED_KIND = Kind("converted", "tensors that torch casts to another dtype as it loads them",
                      "load the file with torch, and save the weights again in the dtype that is "
                      "wanted")
COMPUTED = Kind("computed",
                "tensors that a function makes as the file is loaded, so that the file holds no "
                "values of them",
                "load the file with torch in a sandbox, and save the weights again")
# fmt: on

# The first pattern found in the layout of a composite tensor decides.
COMPOSITES: tuple[tuple[str, Kind], ...] = (
    (r"^sparse_", SPARSE),
    (r"^nested$|\.NestedTensor$", NESTED_TENSOR),
    (rf"^{UNINITIALIZED}$", LAZY),
    (rf"^{LAYOUT}$", RANK_SHARD),
    (rf"^{DIFFERING}$", DIFFERENT),
    (r"^torchao\.", QUANTIZED),
    (rf"^{CONVERTED}$", CONVERTED_KIND),
    (r"", SUBCLASS),
)
FLAT = "flat_param"
SHARDED_XLA = "_fsdp_shard"  # in the names of torch_xla's FSDP
_FLAT = regex(rf"(^|\.)(_?flat_param(_\d+)?$|{SHARDED_XLA})")
_WEIGHT = regex(r"(^|\.)(weight|bias)$|lora_")  # names of tensors that are never empty


def unplain(name: str, leaf: Leaf) -> Unplain | None:
    """Return why an entry of a state dict cannot be written as it is; None if it can."""
    if isinstance(leaf, CompositeTensor):
        return _composite(name, leaf)
    if _FLAT.search(name):
        return Unplain(FLATTENED)
    return None if leaf.chunks else Unplain(META)


def _composite(name: str, leaf: CompositeTensor) -> Unplain:
    if leaf.layout in LOCAL_PARTS:
        held = local_parts(leaf)
        if any(part.shape == leaf.shape for part in held):
            return Unplain(PARTIAL)
        shapes = " and ".join(str(list(part.shape)) for part in held[:SHOWN]) or "nothing"
        kind = FLATTENED if _FLAT.search(name) else SHARD
        return Unplain(kind, f"{shapes} of {list(leaf.shape)}")
    kind = next(kind for pattern, kind in COMPOSITES if re.search(pattern, leaf.layout))
    return Unplain(kind, _made_of(leaf) if leaf.wrapper is not None else "")


def _made_of(leaf: CompositeTensor) -> str:
    parts = ", ".join(leaf.parts)
    name = leaf.layout.rpartition(".")[2]
    return f"{name}: {parts}"[:SHOWN_TEXT] if parts else name[:SHOWN_TEXT]


# Functions and classes of torch that make tensors. Classes like ``torch.device`` make none.
_MAKES_TENSORS = regex(
    r"^torch\.(?!(device|dtype|layout|memory_format|finfo|iinfo)$)[a-z_]\w*$"
    r"|^torch\.(\w+\.)*(\w*Tensor|Parameter|Buffer|Variable)(\.\w+)?$"
    r"|^torch\.(_utils|_tensor|functional|sparse|nested|special|fft|linalg)\.\w+$"
    r"|^torch\.(_C\.)?_(VariableFunctions|nn|refs)\w*\.\w+$"
)


def is_computed(obj: Opaque) -> bool:
    """Return whether a loader would make a tensor where the tree has an object without one."""
    name = obj.qualname.removeprefix("<result of ").removesuffix(">")
    return _MAKES_TENSORS.search(name) is not None


def placeholders(entries: Mapping[str, Leaf]) -> tuple[str, ...]:
    """Return the names of floating-point tensors of shape [0] that stand for weights elsewhere.

    An empty buffer is nothing unusual. An empty weight or bias is unusual, and so is a state dict
    that is mostly empty.
    """
    empty = tuple(
        name
        for name, ref in entries.items()
        if ref.shape == (0,) and isinstance(ref, TensorRef) and ref.dtype.is_floating and ref.chunks
    )
    if not empty:
        return ()
    floating = sum(ref.dtype.is_floating for ref in entries.values())
    is_most = len(empty) >= MANY_EMPTY and 2 * len(empty) > floating
    return empty if is_most or any(map(_WEIGHT.search, empty)) else ()


def unplain_entries(entries: Mapping[str, Leaf]) -> dict[str, Unplain]:
    """Return the entries of a state dict that cannot be written as they are."""
    empty = frozenset(placeholders(entries))
    if not empty and not _may_be_flat("\n".join(entries)) and _are_plain(entries.values()):
        return {}
    found: dict[str, Unplain] = {}
    for name, leaf in entries.items():
        if type(leaf) is TensorRef and leaf.chunks and not empty and not _may_be_flat(name):
            continue  # mostly all of them, and there may be 100,000
        why = Unplain(PLACEHOLDER) if name in empty else unplain(name, leaf)
        if why is not None:
            found[name] = why
    return found


def _may_be_flat(name: str) -> bool:
    """Return whether a name, or one of several in a text, may be that of a flat parameter."""
    return FLAT in name or SHARDED_XLA in name


def _are_plain(leaves: Collection[Leaf]) -> bool:
    """Return whether all are tensors with values, as mostly; there may be 100,000."""
    return set(map(type, leaves)) == {TensorRef} and all(map(attrgetter("chunks"), leaves))


# ---------------------------------------------------------------------------------------- in words


def refuse_incomplete(refused: Mapping[str, Unplain], total: int, path: Path | None = None) -> None:
    """Refuse to take a part of the weights for all of them.

    Args:
        refused: the entries that cannot be written.
        total: how many tensors are asked for, these among them.
        path: the file, for the message.

    Raises:
        UnsupportedError: there is such an entry.
    """
    if not refused:
        return
    groups = grouped(refused)
    said = "; ".join(describe_kind(kind, members) for kind, members in groups.items())
    raise UnsupportedError(
        f"{len(refused)} of {total} weights cannot be taken as plain tensors: {said}",
        path=path,
        address=next(iter(refused)),
        hint=next(iter(groups)).advice,
    )


def grouped(refused: Mapping[str, Unplain]) -> dict[Kind, dict[str, Unplain]]:
    """Group the refused entries by their kinds: flattened ones, then in the order of the first.

    What is in a flat parameter may be there by name too, cut by rank.
    """
    is_flat = any(why.kind is FLATTENED for why in refused.values())
    groups: dict[Kind, dict[str, Unplain]] = {FLATTENED: {}} if is_flat else {}
    for name, why in refused.items():
        groups.setdefault(why.kind, {})[name] = why
    return groups


def describe_kind(kind: Kind, members: Mapping[str, Unplain]) -> str:
    """Describe the tensors of one kind, with the first of their names."""
    names = [f"{name} ({why.detail})" if why.detail else name for name, why in members.items()]
    return f"{kind.what}: {named(names, SHOWN)}"

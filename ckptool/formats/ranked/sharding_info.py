"""The metadata by which a safetensors file says that its tensors are parts of larger ones.

torch's distributed checkpoint writes a safetensors file for each rank, with the place of each part
in the header: ``{"DCP_SHARDING_INFO": '{"name": {"saved_offsets": [4, 0]}}'}``. Neither the shape
of the whole nor the number of files is anywhere. What rank 0 alone writes has offsets of zero and
another name, and is whole.

Source: torch 2.13 ``torch/distributed/checkpoint/_hf_utils.py``, ``hf_storage.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.texts import json_object
from ckptool.regex import regex
from ckptool.tree.geometry import are_sizes
from ckptool.tree.nodes import CompositeTensor, TensorRef

KEY, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
SHARD = regex(
    r"shard-(?P<rank>\d{1,9})-model-(?P<group>\d{1,9})-of-(?P<groups>\d{1,9})\.safetensors"
)
LAYOUT = "dcp_shard"  # of a tensor of which a file has only a part
DIFFERING = "differing_ranks"  # of a plain tensor that has other values in each rank's file
PART = "part"


def saved_offsets(metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]] | None:
    """Return where each tensor of a file begins in the whole; None if the file does not say.

    Raises:
        DamagedError: the text is not as torch writes it.
    """
    if KEY not in metadata:
        return None
    fields = json_object(metadata[KEY].encode(), f"{KEY} in its header")
    return {name: _offsets(name, field) for name, field in fields.items()}


def _offsets(name: str, field: Any) -> tuple[int, ...]:
    offsets = field.get(OFFSETS) if isinstance(field, dict) else None
    if not are_sizes(offsets):
        raise DamagedError(f"{KEY} does not say where its part begins", address=name)
    return (*offsets,)


def as_parts(
    tensors: Mapping[str, TensorRef], metadata: Mapping[str, str], file_name: str
) -> dict[str, TensorRef | CompositeTensor]:
    """Return the tensors of a file, as parts if the file is one of several of a save."""
    offsets = saved_offsets(metadata)
    is_part = offsets is not None and (
        any(map(any, offsets.values())) or SHARD.fullmatch(Path(file_name).name) is not None
    )
    if not is_part:
        return {**tensors}
    return {
        name: CompositeTensor(LAYOUT, ref.dtype, ref.shape, {PART: ref})
        for name, ref in tensors.items()
    }

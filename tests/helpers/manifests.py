"""What the manifests of the zoo and of our fixtures say, in the words of the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ckptool.ema.metadata import META_KEYS
from helpers.tensors import assert_same_tensor

UNASKED = {"ema", "swa", "schedule-free"}  # kinds that are taken when nothing else could be meant


def is_taken(row: Mapping[str, Any]) -> bool:
    """Whether extract-ema takes the weights of this row of our manifest without being told."""
    return row["status"] == "found" and row["kind"] in UNASKED


def flat(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of what describes an average; keys without the place where it stands."""
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            yield from flat(value)
        else:
            yield key.replace("/", ".").rpartition(".")[2], value


def assert_shows(candidates: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> None:
    """Some candidate shows each of the values that locating knows as metadata."""
    shown = [candidate["meta"] for candidate in candidates]
    for key, value in flat(metadata):
        if key in META_KEYS:
            assert any(_is_shown(meta, key, value) for meta in shown), (key, value, shown)


def _is_shown(meta: Mapping[str, Any], key: str, value: Any) -> bool:
    if isinstance(value, float) and isinstance(meta.get(key), float):
        return math.isclose(meta[key], value, rel_tol=1e-6)  # float32 in the file
    return key in meta and meta[key] == value


def assert_holds(written: Mapping[str, Tensor], truth: Path, others: Iterable[str] = ()) -> None:
    """Every tensor of the truth, to the last bit; besides it only the ``others``."""
    wanted = load_file(truth)
    assert set(written) - set(wanted) <= set(others)
    for name, tensor in wanted.items():
        assert_same_tensor(written[name], tensor, name)


def slot_at(content: Any, address: str | None) -> Any:
    """What stands at an address of a loaded checkpoint."""
    for key in address.split("/") if address else ():
        content = content[int(key)] if isinstance(content, (list, tuple)) else content[key]
    return content

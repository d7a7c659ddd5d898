"""Weights of the model that equal others, and of which the EMA holds only one.

Tied weights have two names in the model's state dict, and one among its parameters, from which
many EMAs are made. Shared bytes show the tie, but ``.cpu()`` on each tensor and DCP copy them
apart. Then one of two names has no EMA weights, and a model that ties them keeps the values that it
loads last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ckptool.contents.inventory import Leaf, Table
from ckptool.ema.candidates import Candidate
from ckptool.ema.evidence import is_constant
from ckptool.formats.base import TensorReader
from ckptool.tensors.sample import beginning, is_readable
from ckptool.tree.nodes import TensorRef

MAX_LOOKED = 256  # tensors of either kind whose values are read
MIN_DIMENSIONS = 2  # fewer dimensions are biases and scales, which are often equal by chance


def half_averaged(
    candidate: Candidate, model: Table | None, reader: TensorReader
) -> Mapping[str, str]:
    """Return the model's names without EMA weights whose values equal those of a name with some.

    The result maps each to that other name. Only the first values of the tensors are compared.
    """
    if model is None or candidate.alignment is None or not candidate.is_average:
        return {}
    missing = dict(_matrices(model, candidate.alignment.missing_keys))
    alike = {_form(ref) for ref in missing.values()}
    paired = _matrices(model, candidate.alignment.pairs, alike)
    values = {(_form(ref), tuple(beginning(reader, ref))): name for name, ref in paired}
    if not values:
        return {}
    found = {n: (_form(ref), tuple(beginning(reader, ref))) for n, ref in missing.items()}
    return {
        name: values[key]
        for name, key in found.items()
        if key in values and not is_constant(key[1])
    }


def _matrices(
    model: Table, names: Iterable[str], alike: set[object] | None = None
) -> Iterator[tuple[str, TensorRef]]:
    """Yield the first readable matrices under the names, only those of the forms ``alike``."""
    looked = 0
    for name in names:
        ref: Leaf = model.entries[name]
        if not isinstance(ref, TensorRef) or len(ref.shape) < MIN_DIMENSIONS:
            continue
        if is_readable(ref) and (alike is None or _form(ref) in alike) and looked < MAX_LOOKED:
            looked += 1
            yield name, ref


def _form(ref: TensorRef) -> object:
    return ref.shape, ref.dtype.name


def half_averaged_message(found: Mapping[str, str]) -> str:
    """Return the message of the finding, on the first of the names."""
    name, other = next(iter(found.items()))
    more = f" ({len(found) - 1} more are like this)" if len(found) > 1 else ""
    return (
        f"{name} equals {other} in the model, but the EMA holds only {other}: if the two are tied, "
        f"load the values of {other} for both{more}"
    )

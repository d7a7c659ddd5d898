"""The dtypes in which tensors are written: ``--dtype D`` for all, ``--dtype 'GLOB=D'`` for some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain, pairwise

from ckptool.contents.globs import meant
from ckptool.dtypes import DType
from ckptool.errors import UsageError
from ckptool.sources.base import overlapping
from ckptool.tensors.casting import ALSO, CASTABLE, Casting, start_of
from ckptool.tree.nodes import TensorRef


def plan_casting(tensors: Mapping[str, TensorRef], asked: Sequence[str]) -> Casting:
    """Return the cast of each tensor.

    Args:
        tensors: the tensors that are written, by the names that globs match.
        asked: ``D`` for all floating tensors, or ``GLOB=D`` for those whose name the glob matches
            as a whole. Of two globs that match a name, the later one counts.

    Raises:
        UsageError: a dtype is unknown or named twice, a glob matches no name, or tensors that share
            bytes would get different dtypes.
    """
    wanted: DType | None = None
    chosen: dict[str, DType] = {}
    for text in asked:
        glob, has_glob, name = text.rpartition("=")
        dtype = parse_dtype(name)
        if not has_glob:
            if wanted is not None:
                raise UsageError(
                    f"--dtype names two dtypes for all tensors: {wanted.name} and {dtype.name}",
                    hint="for some tensors write --dtype 'GLOB=D'",
                )
            wanted = dtype
            continue
        names = [name for name in tensors if fnmatchcase(name, glob)]
        if not names:
            hint = meant(glob, list(tensors), "names")
            raise UsageError(f"--dtype {text!r}: no tensor's name fits {glob!r}", hint=hint)
        chosen |= dict.fromkeys(names, dtype)
    if chosen:
        _refuse_torn(tensors, Casting(wanted), chosen)
    return Casting(wanted, {start_of(tensors[name]): dtype for name, dtype in chosen.items()})


def parse_dtype(name: str) -> DType:
    """Return a floating dtype by its name: that of torch, or a common one such as ``bf16``.

    Raises:
        UsageError: there is no such dtype.
    """
    of_torch = name.lower().removeprefix("torch.")
    found = CASTABLE.get(ALSO.get(of_torch, of_torch))
    if found is None:
        hint = f"one of: {' '.join(CASTABLE)}; or fp16, bf16 and the like"
        raise UsageError(f"{name!r} is no floating-point dtype", hint=hint)
    return found


def _refuse_torn(
    tensors: Mapping[str, TensorRef], others: Casting, chosen: Mapping[str, DType]
) -> None:
    """Refuse different dtypes for tensors that share bytes, which are cast together."""
    stored = {name: ref for name, ref in tensors.items() if ref.chunks and ref.numel}
    spans = ((ref.chunks[0].span, name) for name, ref in stored.items())
    for one, other in chain.from_iterable(map(pairwise, overlapping(spans))):
        first, second = (
            chosen.get(name) or others.dtype_of(tensors[name]) for name in (one, other)
        )
        if first is not second and tensors[one].dtype.name in CASTABLE:
            raise UsageError(
                f"{one} and {other} share bytes, and would become {first.name} and {second.name}",
                hint="name both in one glob: --dtype 'GLOB=D'",
            )

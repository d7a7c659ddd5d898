"""CK3: checks for values that break training: NaN, infinities, layers that hold one number.

By default a sample is read, the beginnings of tensors spread over each section. ``--values`` reads
everything, in the scan that reads the checksums too. A mask (-inf where attention must not look) is
no fault. Nor is a single number beside the weights: the best loss so far is infinite before the
first evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, once
from ckptool.contents.inventory import is_state_dict
from ckptool.formats.base import TensorReader
from ckptool.reports.base import Finding
from ckptool.reports.rules import VALUES, finding
from ckptool.tensors.finite import HUGE
from ckptool.tensors.sample import beginning, is_readable, spread
from ckptool.tensors.statistics import (
    Extremes,
    Nonfinite,
    at_limit,
    extreme_values,
    nonfinite_values,
    only_value,
)
from ckptool.tensors.volume import refuse_repetition
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, TensorRef

SAMPLED = 32  # tensors of each section
MAX_UNSET = 1 << 16  # values of an observer: one for each channel
COUNTED_BYTES = 2  # size of a counter's dtype; smaller ones hold pixels and quantized weights

Tensors = dict[Address, TensorRef]


@once
def _sections(subject: Subject) -> dict[str, Tensors]:
    """Group tensors by owner: the model, EMA weights (``averages``), optimizers and others."""
    owners = {id(c.table.node): "averages" for c in subject.averages}
    if subject.location.model is not None:
        owners[id(subject.location.model.node)] = "model"
    sections: dict[str, Tensors] = {}
    for table in (*subject.inventory.weights, *subject.inventory.parts):
        name = owners.get(id(table.node), "other")
        is_loose = name == "other" and not is_state_dict(table.node)  # losses of a run, say
        for key, ref in table.tensors.items():
            if (ref.numel > 1 and (len(ref.shape) > 1 or not is_loose)) or name != "other":
                sections.setdefault(name, {})[*table.address, key] = ref
    if subject.optimizer_tensors:
        sections["optimizer"] = subject.optimizer_tensors
    return sections


# ----------------------------------------------------------------------------------------- a sample


def sampled(subject: Subject) -> Verdicts:
    """Look for non-finite values at the beginnings of some tensors of each section."""
    looked = floating = 0
    for section, tensors in _sections(subject).items():
        floating += sum(ref.dtype.is_floating for ref in tensors.values())
        readable = [(address, ref) for address, ref in tensors.items() if is_readable(ref)]
        looked += len(readable)
        for address, ref in spread(readable, SAMPLED):
            wrong = _wrong(beginning(subject.checkpoint.reader, ref))
            if wrong and not (section != "optimizer" and _is_unset(subject, ref)):
                message = f"{section}: {wrong} among the first values"
                yield finding("CK303", format_address(address), message)
    if not looked and VALUES not in subject.reads:  # else all values are read
        yield NotChecked("CK303", "no values that can be sampled", is_absent=not floating)


def _is_unset(subject: Subject, ref: TensorRef) -> bool:
    """Return whether all values are the same infinity, as in observers before their first value."""
    if ref.numel > MAX_UNSET or len(set(beginning(subject.checkpoint.reader, ref))) > 1:
        return False
    return nonfinite_values(subject.checkpoint.reader, ref).is_unset


def _wrong(values: Sequence[float]) -> str | None:
    if math.isfinite(sum(values)):
        return None
    wrong = [value for value in values if not math.isfinite(value)]
    rest = {value for value in values if value != -math.inf}
    if not wrong or (len(rest) == 1 and all(map(math.isfinite, rest))):
        return None  # a sum that overflows, or a mask
    return "NaN" if any(map(math.isnan, wrong)) else "infinities"


# ------------------------------------------------------------------------------------- every value


def _nonfinite(subject: Subject) -> Verdicts:
    """Count the non-finite values of the tensors that the scan of all values suspects."""
    sections = _sections(subject)
    kinds = {address: name for name, tensors in sections.items() for address in tensors}
    suspects = [(address, ref) for address, ref in subject.scan.suspects if address in kinds]
    counts = _each(subject, suspects, nonfinite_values)
    for (address, ref), seen in zip(suspects, counts, strict=True):
        yield from _count(address, ref, kinds[address], Nonfinite(*seen))
    if not any(ref.dtype.is_floating for ref in subject.weight_tensors.values()):
        yield NotChecked("CK301", "no floating-point weights", is_absent=True)
    if not sections.get("optimizer"):
        yield NotChecked("CK302", "there is no optimizer's state", is_absent=True)
    yield from _without_arithmetic(sections)


def _each(
    subject: Subject,
    suspects: Sequence[tuple[Address, TensorRef]],
    look: Callable[[TensorReader, TensorRef], Any],
) -> list[Any]:
    """Return ``look`` of each tensor, which reads all of its values."""
    refuse_repetition(ref for _, ref in suspects)
    reader = subject.checkpoint.reader
    return subject.over(suspects, lambda each: look(reader, each[1]), lambda each: each[1].nbytes)


def _count(address: Address, ref: TensorRef, section: str, seen: Nonfinite) -> Iterator[Finding]:
    is_fill = seen.is_mask or (seen.is_unset and section != "optimizer")
    if (seen.nan or seen.infinite) and not is_fill:
        rule = "CK302" if section == "optimizer" else "CK301"
        counts = ((seen.nan, "NaN"), (seen.infinite, "infinite"))
        what = " and ".join(f"{count:,} {kind}" for count, kind in counts if count)
        message = f"{section}: {what} of {ref.numel:,} values"
        yield finding(rule, format_address(address), message)


def _without_arithmetic(sections: dict[str, Tensors]) -> Iterator[NotChecked]:
    """Report rules as not checked for tensors without stored values or with unsupported dtypes."""
    for section, tensors in sections.items():
        rule = "CK302" if section == "optimizer" else "CK301"
        unstored = sum(
            r.dtype.is_floating and not r.chunks and r.numel > 0 for r in tensors.values()
        )
        if unstored:
            yield NotChecked(rule, f"{unstored} tensors have no stored values")
        odd = {r.dtype.name for r in tensors.values() if r.dtype.is_floating and not r.dtype.numpy}
        if odd:
            yield NotChecked(rule, f"there is no arithmetic for {', '.join(sorted(odd))}")


def _extreme(subject: Subject) -> Verdicts:
    """Report weights at the limit of float16 or beyond any real size, among the scan's suspects."""
    weights = subject.weight_tensors
    suspects = [(at, ref) for at, ref in subject.scan.suspects if at in weights]
    counts = _each(subject, suspects, extreme_values)
    for (address, ref), found in zip(suspects, counts, strict=True):
        seen, where = Extremes(*found), format_address(address)
        if seen.saturated and not seen.is_mask:
            message = f"{seen.saturated:,} of {ref.numel:,} values are 65504 or -65504"
            yield finding("CK307", where, f"{message}, the largest float16: they may be clamped")
        if seen.huge and not seen.is_mask and ref.numel > 1:  # a single number may count anything
            message = f"{seen.huge:,} of {ref.numel:,} values are {HUGE:g} or larger in size"
            yield finding("CK308", where, f"{message}, up to {seen.largest:.3g}")
    if not any(ref.dtype.is_floating for ref in weights.values()):
        for rule in ("CK307", "CK308"):
            yield NotChecked(rule, "no floating-point weights", is_absent=True)


def _constant(subject: Subject) -> Verdicts:
    """Report matrices that hold one value; the scan and the beginnings rule out most others."""
    matrices = [
        (address, ref)
        for section, tensors in _sections(subject).items()
        for address, ref in (tensors.items() if section in {"model", "averages"} else ())
        if sum(size > 1 for size in ref.shape) > 1 and ref.numel >= 4 and ref.dtype.is_floating
    ]
    readable = [(address, ref) for address, ref in matrices if is_readable(ref)]
    reader, varied = subject.checkpoint.reader, subject.scan.varied
    suspects = [
        (address, ref)
        for address, ref in readable
        if address not in varied and len(set(beginning(reader, ref))) == 1
    ]
    only = _each(subject, suspects, only_value)
    for (address, ref), value in zip(suspects, only, strict=True):
        if value is not None:
            yield _one_value(address, ref, value)
    if len(readable) < len(matrices) or not matrices:
        unread = f"{len(matrices) - len(readable)} weight matrices whose beginnings are not read"
        reason = unread if matrices else "there are no weight matrices"
        yield from (NotChecked(r, reason, not matrices) for r in ("CK304", "CK305"))


def _one_value(address: Address, ref: TensorRef, value: float) -> Finding:
    rule, what = ("CK304", "zero") if value == 0 else ("CK305", f"{value:g}")
    message = f"all {ref.numel:,} values of shape {list(ref.shape)} are {what}"
    return finding(rule, format_address(address), message)


def _integers(subject: Subject) -> Verdicts:
    """Report counters that have reached the limit of their dtype."""
    integers = [
        (address, ref)
        for address, ref in {**subject.weight_tensors, **subject.optimizer_tensors}.items()
        if ref.dtype.kind in {"int", "uint"} and ref.dtype.itemsize >= COUNTED_BYTES and ref.chunks
    ]
    counts = _each(subject, integers, at_limit)
    for (address, ref), count in zip(integers, counts, strict=True):
        if count:
            message = f"{count:,} of {ref.numel:,} values are the limit of {ref.dtype}"
            yield finding("CK306", format_address(address), message)
    if not integers:
        yield NotChecked("CK306", "no integers of 16 bits or more", is_absent=True)


CHECKS = (
    Check(("CK303",), sampled),
    Check(("CK301", "CK302"), _nonfinite),
    Check(("CK304", "CK305"), _constant),
    Check(("CK307", "CK308"), _extreme),
    Check(("CK306",), _integers),
)

"""CK3: values that no training can go on from: NaN, infinities, layers that hold one number.

By default a sample is looked at, the beginnings of tensors spread over each section; with
``--values`` everything is, in the scan that reads the checksums too. A mask (-inf where attention
must not look) is no fault, nor is a single number that stands beside the weights: the best loss
so far is infinite before the first evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.evidence import beginning, is_readable, spread
from ckptool.numerics import Nonfinite, at_limit, nonfinite_values, only_value
from ckptool.reports import Finding
from ckptool.rules import VALUES, finding
from ckptool.tree import Address, TensorRef, format_address

SAMPLED = 32  # tensors of each section
COUNTED_BYTES = 2  # of an integer type that counts; smaller ones hold pixels and quantized weights

Tensors = dict[Address, TensorRef]


def _sections(subject: Subject) -> dict[str, Tensors]:
    """What the tensors are for: model, averages, optimizer, other."""
    owners = {id(c.table.node): "averages" for c in subject.averages}
    if subject.location.model is not None:
        owners[id(subject.location.model.node)] = "model"
    sections: dict[str, Tensors] = {}
    for table in subject.inventory.weights:
        name = owners.get(id(table.node), "other")
        for key, ref in table.tensors.items():
            if ref.numel > 1 or name != "other":
                sections.setdefault(name, {})[*table.address, key] = ref
    if subject.optimizer_tensors:
        sections["optimizer"] = subject.optimizer_tensors
    return sections


# ----------------------------------------------------------------------------------------- a sample


def _sample(subject: Subject) -> Verdicts:
    """The beginnings of some tensors of each section."""
    looked = floating = 0
    for section, tensors in _sections(subject).items():
        floating += sum(ref.dtype.is_floating for ref in tensors.values())
        readable = [(address, ref) for address, ref in tensors.items() if is_readable(ref)]
        looked += len(readable)
        for address, ref in spread(readable, SAMPLED):
            wrong = _wrong(beginning(subject.checkpoint.reader, ref))
            if wrong:
                message = f"{section}: {wrong} among the first values"
                yield finding("CK303", format_address(address), message)
    if not looked and VALUES not in subject.reads:  # else all of them are looked at
        yield NotChecked("CK303", "no values that can be sampled", is_absent=not floating)


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
    """Every value, in the scan; what that suspects is counted."""
    sections = _sections(subject)
    kinds = {address: name for name, tensors in sections.items() for address in tensors}
    suspects = [(address, ref) for address, ref in subject.scan.suspects if address in kinds]
    reader = subject.checkpoint.reader
    counts = subject.over(suspects, lambda each: nonfinite_values(reader, each[1]), _nbytes)
    for (address, ref), seen in zip(suspects, counts, strict=True):
        yield from _count(address, ref, kinds[address], Nonfinite(*seen))
    if not any(ref.dtype.is_floating for ref in subject.weight_tensors.values()):
        yield NotChecked("CK301", "no floating-point weights", is_absent=True)
    if not sections.get("optimizer"):
        yield NotChecked("CK302", "there is no optimizer's state", is_absent=True)
    yield from _without_arithmetic(sections)


def _nbytes(each: tuple[Address, TensorRef]) -> int:
    return each[1].nbytes


def _count(address: Address, ref: TensorRef, section: str, seen: Nonfinite) -> Iterator[Finding]:
    if (seen.nan or seen.infinite) and not seen.is_mask:
        rule = "CK302" if section == "optimizer" else "CK301"
        what = f"{seen.nan:,} NaN and {seen.infinite:,} infinite"
        message = f"{section}: {what} of {ref.numel:,} values"
        yield finding(rule, format_address(address), message)


def _without_arithmetic(sections: dict[str, Tensors]) -> Iterator[NotChecked]:
    """Types whose values nobody here can judge must not look as if somebody had."""
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


def _constant(subject: Subject) -> Verdicts:
    """Matrices of one value; their beginnings tell most of them apart."""
    matrices = [
        (address, ref)
        for section, tensors in _sections(subject).items()
        for address, ref in (tensors.items() if section in {"model", "averages"} else ())
        if len(ref.shape) > 1 and ref.numel >= 4 and ref.dtype.is_floating
    ]
    readable = [(address, ref) for address, ref in matrices if is_readable(ref)]
    reader = subject.checkpoint.reader
    suspects = [each for each in readable if len(set(beginning(reader, each[1]))) == 1]
    only = subject.over(suspects, lambda each: only_value(reader, each[1]), _nbytes)
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
    """Counters that have reached the end of their type."""
    integers = [
        (address, ref)
        for address, ref in {**subject.weight_tensors, **subject.optimizer_tensors}.items()
        if ref.dtype.kind in {"int", "uint"} and ref.dtype.itemsize >= COUNTED_BYTES and ref.chunks
    ]
    reader = subject.checkpoint.reader
    counts = subject.over(integers, lambda each: at_limit(reader, each[1]), _nbytes)
    for (address, ref), count in zip(integers, counts, strict=True):
        if count:
            message = f"{count:,} of {ref.numel:,} values are the limit of {ref.dtype}"
            yield finding("CK306", format_address(address), message)
    if not integers:
        yield NotChecked("CK306", "no integers of 16 bits or more", is_absent=True)


CHECKS = (
    Check(("CK303",), _sample),
    Check(("CK301", "CK302"), _nonfinite),
    Check(("CK304", "CK305"), _constant),
    Check(("CK306",), _integers),
)

"""CK504, CK505, CK521: checks that the moments of an optimizer belong to the weights.

Parameters have no names in an optimizer's state, only positions. So the moments are compared with
the weights by shape: every moment must have the shape of some tensor of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, an_optimizer
from ckptool.checks.parameter_order import Parameter, is_explained
from ckptool.checks.parts import optimizers_of, steps_of
from ckptool.contents.alignment import unwrapped
from ckptool.contents.inventory import Table
from ckptool.contents.optimizers import OptimizerState, parameters_of
from ckptool.formats.base import TensorReader
from ckptool.names import STATISTICS
from ckptool.records import NamedTuple
from ckptool.reports.base import Finding
from ckptool.reports.rules import finding
from ckptool.tensors.sample import beginning, is_readable, spread
from ckptool.tree.addresses import format_address
from ckptool.tree.describing import named
from ckptool.tree.nodes import TensorRef

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_inf")
SAMPLED = 16  # moments in the first sample
CAREFUL = 64  # moments, and chunks, in the second sample, taken where the first is zero
WINDOWS, WINDOW = 16, 1 << 12  # places in each of these chunks, and the bytes of a place
Shape = tuple[int, ...]


def _shapes(subject: Subject) -> Verdicts:
    """Compare moments with weights: by name, by position where both line up, or by shape."""
    weights = [ref for ref in subject.weight_tensors.values() if ref.dtype.is_floating]
    shapes = Counter(ref.shape for ref in weights)
    if not shapes:
        for rule in ("CK504", "CK521"):
            yield NotChecked(rule, "there are no weights to hold it against", is_absent=True)
        return
    optimizers = optimizers_of(subject)
    if not any(map(_moments, optimizers)):
        yield NotChecked("CK504", "the optimizer keeps no moments", is_absent=True)
    beside = _beside_averages(subject)
    own = Counter(ref.shape for table in beside for ref in table.tensors.values())
    count = sum(len(_parameters(table)) for table in beside) or shapes.total()
    known = Weights(shapes, own, _trained(subject), count)
    is_alone = sum(_fits(optimizer, shapes) for optimizer in optimizers) == 0
    for optimizer in optimizers:
        reason = _not_by_shape(optimizer, shapes)
        if reason:
            yield NotChecked("CK504", reason, is_absent=True)
            continue
        yield from _torn(optimizer)
        yield from _misfits(subject, optimizer, known, is_alone=is_alone)
        if len(optimizer.parameters) > known.held:
            message = f"{len(optimizer.parameters)} parameters, but the file has {known.held}"
            yield finding("CK521", format_address(optimizer.address), message)


class Weights(NamedTuple):
    """The shapes of weights with which the moments are compared."""

    shapes: Counter[Shape]  # of all floating-point weights
    own: Counter[Shape]  # without the EMA weights
    trained: list[Parameter]  # the model's parameters, in its order
    held: int  # parameters, without the EMA weights


PROJECTED = ("projector", "rank", "proj_type")  # GaLore, APOLLO: their moments have fewer rows
PADDING = 4096  # elements: flat partitions are padded to a multiple of the world's size


def _not_by_shape(optimizer: OptimizerState, shapes: Counter[Shape]) -> str | None:
    """Return why the shapes of moments say nothing about the weights; None if they do."""
    fields = (*optimizer.groups, *optimizer.states.values())
    if any(each.get(name) is not None for each in fields for name in PROJECTED):
        return "the moments are those of projected gradients"
    moments = _moments(optimizer)
    strange = [ref for ref in moments if ref.shape not in shapes]
    if not strange or any(len(ref.shape) != 1 for ref in moments):
        return None
    is_part = any(len(shape) > 1 for shape in shapes)
    is_padded = all(len(shape) == 1 for shape in shapes) and all(
        any(abs(ref.numel - shape[0]) < PADDING for shape in shapes) for ref in strange
    )
    return "the moments are flat partitions of several weights" if is_part or is_padded else None


def _misfits(
    subject: Subject, optimizer: OptimizerState, known: Weights, *, is_alone: bool
) -> Iterator[Finding]:
    """Yield at most one finding, by the surest way to pair moments with weights.

    An optimizer with more or fewer parameters may belong to weights that are not saved here. If
    most of its moments fit nothing, that is a fault only if no optimizer fits (``is_alone``).
    """
    where = format_address(optimizer.address)
    wanted = Counter(ref.shape for ref in _moments(optimizer))
    is_whole = len(known.trained) == len(optimizer.parameters)
    strange = list((wanted - (known.own if is_whole else known.shapes)).elements())
    wrong = _wrong_by_name(subject, optimizer)
    permuted = "" if wrong or strange or not is_whole else _permuted(subject, optimizer)
    if is_whole and (strange or permuted):
        wrong = wrong or _wrong_by_place(optimizer, known.trained)
    if wrong:
        message = f"{len(wrong)} of {wanted.total()} moments have another shape than their"
        yield finding("CK504", where, f"{message} weight: {named(wrong)}")
    elif permuted:
        message = f"the states of {permuted} are in an order that its parameters cannot have"
        yield finding("CK504", where, message)
    elif strange and (is_whole or (is_alone and len(strange) * 2 > wanted.total())):
        found = named([str(list(shape)) for shape in strange])
        message = f"{len(strange)} of {wanted.total()} moments have shapes that no weight has"
        yield finding("CK504", where, f"{message}: {found}")


def _fits(optimizer: OptimizerState, shapes: Counter[Shape]) -> bool:
    moments = _moments(optimizer)
    return bool(moments) and all(ref.shape in shapes for ref in moments)


def _wrong_by_name(subject: Subject, optimizer: OptimizerState) -> list[str]:
    """Return the parameters that the optimizer names and whose weights have other shapes."""
    model = subject.location.model
    if model is None or not optimizer.names:
        return []
    weights = {unwrapped(name): ref.shape for name, ref in model.tensors.items()}
    return [
        _misfit(name, shape, state)
        for parameter, state in optimizer.states.items()
        if (name := optimizer.names.get(parameter)) is not None
        and (shape := weights.get(unwrapped(name))) is not None
        and not _has_shape(state, shape)
    ]


def _wrong_by_place(optimizer: OptimizerState, weights: Sequence[Parameter]) -> list[str]:
    """Return such parameters by position, if the optimizer has all of them in one group."""
    if len(optimizer.groups) != 1:
        return []
    return [
        _misfit(name, shape, state)
        for parameter, (name, shape) in zip(optimizer.parameters, weights, strict=True)
        if (state := optimizer.states.get(parameter)) is not None and not _has_shape(state, shape)
    ]


def _has_shape(state: dict[Any, Any], shape: Shape) -> bool:
    return all(ref.shape == shape for ref in _full_moments(state))


def _misfit(name: str, shape: Shape, state: dict[Any, Any]) -> str:
    other = next(ref.shape for ref in _full_moments(state) if ref.shape != shape)
    return f"{name} {list(shape)}, its moment {list(other)}"


def _full_moments(state: dict[Any, Any]) -> list[TensorRef]:
    """Return a parameter's moments, but not one number for all of it, as NovoGrad keeps."""
    refs = (state.get(name) for name in MOMENTS)
    return [ref for ref in refs if isinstance(ref, TensorRef) and (ref.numel > 1 or not ref.shape)]


def _permuted(subject: Subject, optimizer: OptimizerState) -> str:
    """Return the group whose moments have the parameters' shapes, but in no usual order, or "".

    State dicts that were sorted on saving, as in safetensors files, have lost the model's order.
    """
    if not subject.checkpoint.format.keeps_order or optimizer.is_flat:
        return ""
    tables = [_parameters(table) for table in subject.inventory.weights]
    tables = [table for table in tables if len(table) == len(optimizer.parameters)]
    if any(len(table) > 2 and sorted(table) == table for table in tables):
        return ""
    return next(filter(None, (_permuted_in(optimizer, tables, name) for name in MOMENTS)), "")


def _permuted_in(
    optimizer: OptimizerState, tables: Sequence[Sequence[Parameter]], moment: str
) -> str:
    refs = {p: optimizer.states.get(p, {}).get(moment) for p in optimizer.parameters}
    line = {p: ref.shape if isinstance(ref, TensorRef) else None for p, ref in refs.items()}
    found = Counter(shape for shape in line.values() if shape is not None)
    fitting = [table for table in tables if found <= Counter(shape for _, shape in table)]
    groups = [[line[p] for p in parameters_of(group)] for group in optimizer.groups]
    if not (found and fitting) or any(is_explained(groups, table) for table in fitting):
        return ""
    nth = next((i for i, g in enumerate(groups) if not is_explained([g], fitting[0])), 0)
    return f"group {nth}"


def _beside_averages(subject: Subject) -> list[Table]:
    """Return the state dicts that hold no EMA weights, which may be of an earlier model."""
    model = subject.location.model
    averages = {id(c.table.node) for c in subject.averages} - {id(model.node) if model else 0}
    return [table for table in subject.inventory.weights if id(table.node) not in averages]


def _trained(subject: Subject) -> list[Parameter]:
    """Return the model's parameters, which a training loop usually gives to its optimizer."""
    model = subject.location.model
    return [] if model is None else _parameters(model)


def _parameters(table: Table) -> list[Parameter]:
    return [
        (name, ref.shape)
        for name, ref in table.tensors.items()
        if ref.dtype.is_floating and not name.endswith(STATISTICS)
    ]


def _torn(optimizer: OptimizerState) -> Verdicts:
    """Report moments of one parameter that have two sizes.

    Some optimizers keep a number or a row where others keep a moment: that is no fault.
    """
    for parameter, state in optimizer.states.items():
        moments = [(n, ref) for n in MOMENTS if isinstance(ref := state.get(n), TensorRef)]
        for (name, one), (other_name, other) in pairwise(moments):
            if not _fit(one.shape, other.shape):
                where = format_address((*optimizer.address, "state", parameter))
                shapes = f"{name} is {list(one.shape)}, {other_name} {list(other.shape)}"
                yield finding("CK504", where, shapes)


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    sizes = zip(one, other, strict=False)
    return len(one) != len(other) or all(a == b or 1 in {a, b} for a, b in sizes)


def _moments(optimizer: OptimizerState) -> list[TensorRef]:
    """Return the first moment of each parameter that has one."""
    moments = ((state.get(name) for name in MOMENTS) for state in optimizer.states.values())
    firsts = (next((ref for ref in refs if isinstance(ref, TensorRef)), None) for refs in moments)
    return [ref for ref in firsts if ref is not None]


def _zero(subject: Subject) -> Verdicts:
    looked = False
    for optimizer in optimizers_of(subject):
        moments = readable_moments(optimizer)
        # DeepSpeed makes a first step without gradients, to have states to save.
        is_new = 0 < max(steps_of(subject, optimizer), default=0) <= 1
        looked = looked or bool(moments)
        if moments and not is_new and not any_value(subject.checkpoint.reader, moments):
            message = f"all of {min(len(moments), SAMPLED)} moments that were looked at are zero"
            yield finding("CK505", format_address(optimizer.address), message)
    if not looked:
        yield NotChecked("CK505", "the optimizer keeps no moments", is_absent=True)


def readable_moments(optimizer: OptimizerState) -> list[TensorRef]:
    """Return the moments whose values can be read."""
    return [
        ref
        for state in optimizer.states.values()
        for name in MOMENTS
        if isinstance(ref := state.get(name), TensorRef) and is_readable(ref)
    ]


def any_value(reader: TensorReader, moments: Sequence[TensorRef]) -> bool:
    """Return whether any sampled value is not zero.

    The first sample is the beginnings of some moments, the second many places in more of them: rows
    of an embedding that no batch used, and frozen layers of a flat partition, are zero.
    """
    if any(any(beginning(reader, ref)) for ref in spread(moments, SAMPLED)):
        return True
    chunks = [(ref, chunk.span) for ref in spread(moments, CAREFUL) for chunk in ref.chunks]
    return any(
        any(reader.read(span, start, WINDOW).strip(b"\0\x80"))
        for _, span in chunks[:CAREFUL]
        for start in range(0, span.nbytes, max(WINDOW, -(-span.nbytes // WINDOWS)))
    )


CHECKS = (
    Check(("CK504", "CK521"), _shapes, (an_optimizer,)),
    Check(("CK505",), _zero, (an_optimizer,)),
)

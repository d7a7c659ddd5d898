"""What the commands answer: frozen dataclasses whose fields are the keys of the JSON documents.

Commands compute them, renderers show them; neither knows the other. ``schema`` names the document
and its version; within a version keys are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Finding(NamedTuple):
    """Something worth saying about a checkpoint."""

    rule: str  # CK404
    severity: str  # error | warning | info
    address: str
    message: str
    remedy: str | None = None  # what to do or to type next


class Amount(NamedTuple):
    """How many tensors, and how many bytes they have."""

    count: int  # type: ignore[assignment]
    bytes: int


class TensorTotals(NamedTuple):
    """All tensors of a checkpoint."""

    count: int  # type: ignore[assignment]
    elements: int
    bytes: int  # of the values
    stored_bytes: int  # of the file that they take, shared ones once
    dtypes: Mapping[str, Amount]


class Section(NamedTuple):
    """A top-level part of a checkpoint."""

    address: str
    role: str  # model, ema, optimizer, scheduler, rng, metrics, config, callbacks, other, …
    tensors: int
    elements: int
    bytes: int


class CandidateReport(NamedTuple):
    """A place that may hold averaged weights."""

    address: str
    file: str | None  # the sibling that holds it, if it is another file
    kind: str
    layout: str | None
    library: str | None
    why: str
    tensors: int
    bytes: int
    aliases: tuple[str, ...]
    model: str | None
    naming: str | None
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    meta: Mapping[str, Any]
    distance: (
        float | None
    )  # of a sample of values, relative to the model's; 0: identical, 1: unrelated


class EmaReport(NamedTuple):
    """Where the averaged weights are."""

    status: str  # found | none | ambiguous
    main_slot: str  # raw | averaged | unknown
    selected: str | None
    candidates: tuple[CandidateReport, ...]


class GlobalReport(NamedTuple):
    """A class or function that a pickle names."""

    name: str
    trust: str  # known | unknown | dangerous
    called: bool  # a loader that obeyed the pickle would call it
    pickle: str


class TensorStats(NamedTuple):
    """Numbers over the finite values of one tensor; None where there are none."""

    min: float | None
    max: float | None
    mean: float | None
    std: float | None  # of the population
    norm: float | None  # L2
    nonfinite: int


class TensorEntry(NamedTuple):
    """One tensor of ``--tensors``."""

    address: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    device: str
    stats: TensorStats | None = None
    sha256: str | None = None  # over type, shape and canonical bytes: the same in every container


class InspectReport(NamedTuple):
    """What ``ckptool inspect`` says of one file."""

    path: str
    format: str
    size_bytes: int
    tensors: TensorTotals
    sections: tuple[Section, ...]
    ema: EmaReport
    training: Mapping[str, Any]
    pickle: Mapping[str, tuple[GlobalReport, ...]]
    metadata: Mapping[str, Any]  # what the container says of itself: safetensors' __metadata__
    findings: tuple[Finding, ...]
    entries: tuple[TensorEntry, ...] | None = None  # with --tensors, --stats or --digests
    provenance: Mapping[str, Any] | None = None  # what ckptool left in a file that it wrote


class RunEntry(NamedTuple):
    """One checkpoint of a training run."""

    path: str
    size_bytes: int
    format: str | None
    epoch: float | None
    global_step: float | None
    metrics: Mapping[str, Any]
    ema: str | None  # address, or the status where none was found
    error: str | None = None


class RunReport(NamedTuple):
    """What ``ckptool inspect`` says of a directory: a table of a run's checkpoints."""

    path: str
    checkpoints: tuple[RunEntry, ...]
    best: Mapping[str, str]  # metric -> path of the checkpoint that is best by it


class CastReport(NamedTuple):
    """What ``--dtype`` did to the values."""

    dtype: str
    tensors: int  # that changed their type
    overflowed: int  # finite values that became infinite, or the largest of a type without infinity
    vanished: int  # values other than 0 that became 0
    losses: Mapping[str, Mapping[str, int]]  # both by tensor, where there are any


class ShardReport(NamedTuple):
    """One of several files."""

    file: str  # its name
    tensors: int
    bytes: int


class ExtractReport(NamedTuple):
    """What ``ckptool extract-ema`` did, or with ``--dry-run`` would do."""

    path: str
    output: str
    format: str  # safetensors | torch-zip
    written: bool
    ema: str  # address of the averaged weights
    model: str | None
    names: str  # model | bare | ema
    main_slot: str
    tensors: int
    bytes: int
    averaged: int  # tensors that come from the average
    from_model: tuple[str, ...]  # names of tensors that the average lacks
    tied: Mapping[str, str]
    dropped: tuple[str, ...]  # names in the average that the model does not have
    findings: tuple[Finding, ...] = ()
    file: str | None = None  # the sibling that holds the averages, if it is another file
    kind: str = "ema"  # of average; chosen: named by the user; table: taken as it stands
    ties: str = "shared"  # how tied tensors are written: shared | once | each
    casts: CastReport | None = None  # with --dtype
    shards: tuple[ShardReport, ...] = ()  # with several files, of which ``output`` is the index
    removed: tuple[str, ...] = ()  # shards of the set that is replaced, which the new one lacks


class PromoteReport(NamedTuple):
    """What ``ckptool promote-ema`` did, or with ``--dry-run`` would do."""

    path: str
    output: str
    format: str
    written: bool
    ema: str
    model: str
    main_slot: str  # of the input
    tensors: int  # replaced
    bytes: int  # replaced
    kept: tuple[str, ...]  # the model's tensors without an average, which stay
    dropped: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    file: str | None = None  # the sibling that holds the averages, if it is another file
    casts: Mapping[str, int] = {}  # "float32 to bfloat16" -> tensors that change their type
    shared: tuple[str, ...] = ()  # addresses elsewhere that view bytes that change
    optimizers: tuple[str, ...] = ()  # their state belongs to the weights that were replaced
    in_place: bool = False
    backup: str | None = None  # the name under which the replaced file stays


class LayoutsReport(NamedTuple):
    """The table of layouts."""

    layouts: tuple[Any, ...]  # rows of ``layouts.py``, those of the configuration first


class ErrorReport(NamedTuple):
    """An error as a document."""

    error: Mapping[str, Any]


# Documents that stand alone, by the names of their classes, with the version of their form.
SCHEMAS: Mapping[str, str] = {
    "InspectReport": "ckptool/inspect/1",
    "RunReport": "ckptool/inspect-run/1",
    "ExtractReport": "ckptool/extract-ema/1",
    "PromoteReport": "ckptool/promote-ema/1",
    "VerifyReport": "ckptool/verify/1",
    "ChoiceReport": "ckptool/verify-choice/1",
    "RulesReport": "ckptool/rules/1",
    "DiffReport": "ckptool/diff/1",
    "LayoutsReport": "ckptool/layouts/1",
    "ErrorReport": "ckptool/error/1",
}

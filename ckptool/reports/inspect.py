"""Reports of ``ckptool inspect`` for one checkpoint; see ``base.py``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from ckptool.records import field, record
from ckptool.reports.base import (
    MAY_BE_ABSENT,
    ConfiguredReport,
    EmaStatus,
    Finding,
    GroupDistance,
    MainSlot,
    SameReport,
    Section,
    SnapshotReport,
    TensorStats,
    TensorTotals,
)


@record
class CandidateReport:
    """A key path that may hold EMA weights."""

    address: str
    file: str | None  # the sidecar file that holds them, if it is another file
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
    # Distance from the model's values, relative to them, in a sample; 0: identical, 1: unrelated.
    distance: float | None
    # Key paths of the metadata that is not stored beside the EMA weights.
    meta_at: Mapping[str, str] = field(default_factory=dict)
    # The reason why the values that were to be compared have no distance.
    no_distance: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # The beginning of all names that the model's names lack: module.
    prefix: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # How many of them are averages: by the checksums of the file, or by all values with --stats.
    same: SameReport | None = field(default=None, metadata=MAY_BE_ABSENT)


@record
class EmaReport:
    """The key path of the EMA weights, and the candidates for it."""

    status: EmaStatus
    main_slot: MainSlot
    selected: str | None
    candidates: tuple[CandidateReport, ...]


@record
class ModelReport:
    """The model's state dict, or that of the weights where no model was found."""

    address: str
    parameters: int  # elements of its floating tensors, without buffers; tied ones count once
    dtypes: tuple[str, ...]  # of the parameters, the most frequent first


@record
class OptimizerReport:
    """The state of an optimizer."""

    address: str
    kind: str | None  # AdamW; None: its settings do not tell
    parameters: int
    states: int  # parameters that have a state
    groups: int
    lr: tuple[float, ...]  # learning rates of the groups, each once
    stateless: bool = False  # it keeps no state: SGD without momentum


@record
class GlobalReport:
    """A class or function that a pickle names."""

    name: str
    trust: str  # known | unknown | dangerous
    called: bool  # a loader that obeyed the pickle would call it
    pickle: str


class Load(StrEnum):
    """The outcome of a load, or the ground on which it is refused."""

    TAKEN = "taken"
    NOT_ASKED = "not-asked"  # torch.load does not read files of this format so
    UNKNOWN = "unknown"  # a pickle is too large to be followed
    ARCHIVE = "archive"  # another function of torch reads it
    PROTOCOL = "protocol"
    NAMES = "names"
    STEP = "step"


@record
class SafeLoadReport:
    """The answer of ``torch.load(weights_only=True)``, the default since torch 2.6."""

    load: Load
    why: str = ""  # of a refusal, behind "torch.load(weights_only=True)"; of an unknown answer
    names: tuple[str, ...] = ()  # that are not allowed by default

    @property
    def is_refused(self) -> bool:
        """Whether the loader refuses the file."""
        return self.load not in (Load.TAKEN, Load.NOT_ASKED, Load.UNKNOWN)


@record
class FilesReport:
    """Files of one kind in a checkpoint of several files."""

    name: str  # of several files, with * for the numbers in which they differ
    count: int
    holds: str | None  # None: the name does not tell


@record
class SharingReport:
    """The files of a checkpoint of several files, and how processes shared its tensors."""

    world_size: int | None  # processes that saved it; None: the files do not say
    strategy: str | None  # None: nothing is cut
    files: tuple[FilesReport, ...]


@record
class TensorEntry:
    """One tensor of ``--tensors``."""

    address: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    device: str
    stats: TensorStats | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Digest of dtype, shape and canonical bytes: the same in every container.
    sha256: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Class and parts of a tensor that is not plain; or "no values".
    kind: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # The model's parameter to which a tensor in the state of an optimizer belongs.
    parameter: str | None = field(default=None, metadata=MAY_BE_ABSENT)


@record(kw_only=True)
class InspectReport(ConfiguredReport):
    """The answer of ``ckptool inspect`` for one file."""

    path: str
    format: str
    size_bytes: int
    tensors: TensorTotals
    sections: tuple[Section, ...]
    ema: EmaReport
    training: Mapping[str, Any]
    pickle: Mapping[str, tuple[GlobalReport, ...]]
    metadata: Mapping[str, Any]  # of the container: safetensors' __metadata__
    findings: tuple[Finding, ...]
    model: ModelReport | None
    optimizers: tuple[OptimizerReport, ...]
    weights_only: SafeLoadReport | None = field(default=None, metadata=MAY_BE_ABSENT)  # of a file
    # Of a checkpoint of several files.
    sharing: SharingReport | None = field(default=None, metadata=MAY_BE_ABSENT)
    # With --tensors, --stats or --digests.
    entries: tuple[TensorEntry, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Snapshots of EMAs that average --sigma-rel combines.
    snapshots: tuple[SnapshotReport, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    # With --stats: how far the EMA weights are from the model's, by layer.
    ema_layers: tuple[GroupDistance, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    # The metadata that ckptool left in a file that it wrote.
    provenance: Mapping[str, Any] | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Key path of the part that was asked for; all other key paths are relative to it.
    address: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Values of that part, by key path: plain ones, and the first ones of a tensor.
    values: Mapping[str, Any] | None = field(default=None, metadata=MAY_BE_ABSENT)

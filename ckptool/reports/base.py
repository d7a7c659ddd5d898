"""Reports of the commands: frozen dataclasses, whose fields are the keys of JSON documents.

Commands compute reports and renderers show them; neither knows the other. ``schema`` names the
document and its version; within a version keys are only ever added. Here are the parts that several
reports have; reports of one command are in modules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from ckptool.records import field, record

# The metadata of a field that is absent from the JSON document where it is None.
MAY_BE_ABSENT: Mapping[str, bool] = {"may be absent": True}


@record
class LayoutsReport:
    """The table of layouts."""

    layouts: tuple[Any, ...]  # rows of ``ema/layouts.py``, those of the configuration first


@record
class ConfigUse:
    """A configuration file that was found, with the settings that were taken and ignored."""

    path: str
    used: tuple[str, ...]  # verify.strict, layouts
    ignored: tuple[str, ...]  # since the file lies in the directory of an operand


@record(kw_only=True)
class ConfiguredReport:
    """The fields of the reports of all commands that obey a configuration."""

    # Configuration files that were used, or ignored; None: there are none.
    config: tuple[ConfigUse, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)


@record
class ErrorReport:
    """An error as a document."""

    error: Mapping[str, Any]


# Class of each report that is a document of its own -> name and version of the document.
SCHEMAS: Mapping[str, str] = {
    "InspectReport": "ckptool/inspect/1",
    "RunReport": "ckptool/inspect-run/1",
    "ExtractReport": "ckptool/extract-ema/1",
    "PromoteReport": "ckptool/promote-ema/1",
    "ConvertReport": "ckptool/convert/1",
    "AverageReport": "ckptool/average/1",
    "ExplainReport": "ckptool/convert-explain/1",
    "VerifyReport": "ckptool/verify/1",
    "ChoiceReport": "ckptool/verify-choice/1",
    "RulesReport": "ckptool/rules/1",
    "DiffReport": "ckptool/diff/1",
    "RunDiffReport": "ckptool/diff-run/1",
    "LayoutsReport": "ckptool/layouts/1",
    "ErrorReport": "ckptool/error/1",
}


class Severity(StrEnum):
    """The severity of a finding, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@record
class GroupDistance:
    """The tensors and values of one section or layer together."""

    address: str
    role: str
    tensors: int
    differing: int  # tensors that count as different
    values_differing: int
    elements: int
    max_abs: float  # of its floating-point tensors, or of the others if only those differ
    # Of its floating-point tensors that differ, as one vector: of `measured` out of `floating`.
    # Those that are equal are in neither norm, so over all of them it would be smaller.
    relative_l2: float | None
    nonfinite: int = 0  # elements that differ, and are NaN or infinite on a side
    measured: int = 0  # floating-point tensors that differ, and are no counters
    floating: int = 0  # floating-point tensors whose values were compared, without counters


@record
class SameReport:
    """The EMA weights that have the values of the raw weights: buffers, frozen layers."""

    compared: int  # tensors
    same: int  # of them
    names: tuple[str, ...]  # the model's names; (): counted alone


@record
class Finding:
    """A statement about a checkpoint, with a severity and a remedy."""

    rule: str  # CK404
    severity: Severity
    address: str
    message: str
    remedy: str | None = field(default=None, metadata=MAY_BE_ABSENT)  # the next action or command


class EmaStatus(StrEnum):
    """The result of the search for EMA weights."""

    FOUND = "found"
    NONE = "none"
    AMBIGUOUS = "ambiguous"


class MainSlot(StrEnum):
    """The kind of weights in the model's own state dict, which the JSON calls the main slot."""

    RAW = "raw"
    AVERAGED = "averaged"
    UNKNOWN = "unknown"


# Keys under which files store the same number; the first one that a file has counts.
DECAYS = ("decay", "ema_decay")
UPDATES = ("num_updates", "updates", "n_averaged")


@record
class Amount:
    """A number of tensors, and the number of their bytes."""

    count: int
    bytes: int


@record
class TensorTotals:
    """Totals over all tensors of a checkpoint."""

    count: int
    elements: int
    bytes: int  # of the values
    stored_bytes: int  # that they take in the file; shared ones count once
    dtypes: Mapping[str, Amount]
    storage_bytes: int | None = None  # of the storages that they view; None: there are none


@record
class SnapshotReport:
    """A snapshot of a power-function EMA, from which EMAs of other widths can be made."""

    address: str
    time: float  # since the start of training: images for EDM2, updates for ema-pytorch
    sigma_rel: float | None  # relative width; None: the files do not state it
    track: int  # number of the width


@record
class PosthocReport:
    """An EMA of another width, made of snapshots."""

    sigma_rel: float  # its relative width
    residual: float  # relative L2 distance of its profile from the wanted one
    noise: float  # factor by which rounding errors of the snapshots grow
    reach: tuple[float, float] | None  # the narrowest and the widest EMA up to the tolerance
    tolerance: float  # residual up to which an EMA is within reach


@record
class Section:
    """A top-level part of a checkpoint."""

    address: str
    role: str  # model, ema, optimizer, scheduler, rng, metrics, config, callbacks, other, …
    tensors: int
    elements: int
    bytes: int
    object: str | None = None  # the class of a whole nn.Module or optimizer that was pickled


@record
class TensorStats:
    """Statistics of the finite values of one tensor; None where there are no such values."""

    min: float | None
    max: float | None
    mean: float | None
    std: float | None  # of the population
    norm: float | None  # L2
    nonfinite: int
    # The numbers of values in equal intervals from min to max; None: nobody asked for them.
    histogram: tuple[int, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)

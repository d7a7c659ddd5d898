"""Reports of the commands that write weights; see ``base.py``."""

from __future__ import annotations

from collections.abc import Mapping

from ckptool.records import field, record
from ckptool.reports.base import (
    MAY_BE_ABSENT,
    ConfiguredReport,
    Finding,
    MainSlot,
    PosthocReport,
    SameReport,
)


@record
class CastReport:
    """The effect of ``--dtype`` on the values."""

    dtype: str
    tensors: int  # whose dtype changed
    overflowed: int  # finite values that became infinite, or the largest of a dtype without inf
    vanished: int  # values other than 0 that became 0
    losses: Mapping[str, Mapping[str, int]]  # overflowed and vanished, by tensor, if there are any


@record
class ShardReport:
    """One of several output files."""

    file: str  # its name
    tensors: int
    bytes: int


@record(kw_only=True)
class WriteReport(ConfiguredReport):
    """The fields of the reports of all commands that write weights."""

    output: str
    format: str  # safetensors | torch-zip | dcp; that of the checkpoint if it is a copy of one
    written: bool = False  # or only planned, with ``--dry-run``
    tensors: int
    bytes: int
    findings: tuple[Finding, ...] = ()


@record(kw_only=True)
class WeightsReport(WriteReport):
    """The fields of the reports of all commands that write state dicts."""

    tied: Mapping[str, str] = field(default_factory=dict)
    ties: str = "shared"  # how shared tensors are written: shared | once | each
    casts: CastReport | None = None  # with --dtype
    shards: tuple[ShardReport, ...] = ()  # with several files, of which ``output`` is the index
    removed: tuple[str, ...] = ()  # shards of the replaced set that the new set lacks
    wrap: str | None = field(default=None, metadata=MAY_BE_ABSENT)  # key around the state dict
    # Name of each other value in the state dict -> the kind of value.
    left_out: Mapping[str, str] = field(default_factory=dict)


@record(kw_only=True)
class ExtractReport(WeightsReport):
    """The result of ``ckptool extract-ema``, or the plan with ``--dry-run``."""

    path: str
    ema: str  # key path of the EMA weights
    model: str | None
    names: str  # model | bare | ema
    main_slot: MainSlot
    averaged: int  # tensors that come from the EMA
    from_model: tuple[str, ...]  # names of the tensors that the EMA lacks
    dropped: tuple[str, ...]  # names in the EMA that the model lacks
    file: str | None = None  # the sidecar file that holds the EMA weights, if it is another file
    kind: str = "ema"  # of EMA weights; chosen: named by the user; table: a state dict as it is
    buffers: str = "ema"  # ema: as stored; model: the model's own, which ``from_model`` includes
    # Those of ``averaged`` that are no averages, where the checksums of the file tell.
    same: SameReport | None = field(default=None, metadata=MAY_BE_ABSENT)


@record(kw_only=True)
class PromoteReport(WriteReport):
    """The result of ``ckptool promote-ema``, or the plan with ``--dry-run``."""

    path: str
    ema: str
    model: str
    main_slot: MainSlot  # of the input; ``tensors`` and ``bytes`` are those that were replaced
    kept: tuple[str, ...]  # the model's tensors that the EMA lacks; they stay
    dropped: tuple[str, ...]
    file: str | None = None  # the sidecar file that holds the EMA weights, if it is another file
    # "float32 to bfloat16" -> number of tensors whose dtype changes so.
    casts: Mapping[str, int] = field(default_factory=dict)
    shared: tuple[str, ...] = ()  # key paths of other tensors that view bytes that change
    optimizers: tuple[str, ...] = ()  # their state belongs to the weights that were replaced
    in_place: bool = False
    backup: str | None = None  # the name under which the replaced file stays


@record
class PlainReport:
    """A value of a checkpoint that became plain data."""

    address: str  # its key path
    was: str  # its class
    became: str  # dict, list, str, int, float, …


@record(kw_only=True)
class ConvertReport(WeightsReport):
    """The result of ``ckptool convert``, or the plan with ``--dry-run``."""

    path: str
    address: str  # key path of the state dict
    kind: str  # raw, ema, swa, teacher, …; table: nothing tells; checkpoint: a whole one
    beside: tuple[str, ...]  # top-level keys of the checkpoint that the output lacks
    renamed: int = 0  # tensors that have another name
    reshaped: int = 0  # tensors that --split, --join or --transpose made of others
    plain: tuple[PlainReport, ...] = ()  # with --safe


@record
class IntoReport:
    """The checkpoint whose model's state dict an average replaces; all else stays."""

    path: str
    model: str  # key path of the state dict
    replaced: int  # tensors
    bytes: int
    kept: tuple[str, ...]  # the model's tensors that the average lacks
    casts: Mapping[str, int]  # "float32 to bfloat16" -> number of tensors whose dtype changes so
    optimizers: tuple[str, ...]  # their state belongs to the weights that were replaced


@record
class ExplainedTensor:
    """A tensor of a conversion's result, and the tensors of the source that it is made of."""

    name: str
    kind: str  # copy | slice | join | stack; unexplained
    sources: tuple[str, ...]
    transposed: bool  # or a part of it is
    cast: str | None  # the dtype of the source, if that is another one
    by_rules: bool  # the rules make it
    note: str = ""  # what is known of one that is not explained, or not made by the rules


@record(kw_only=True)
class ExplainReport(ConfiguredReport):
    """The result of ``ckptool convert --explain``."""

    source: str
    path: str
    tensors: tuple[ExplainedTensor, ...]
    explained: int
    unused: tuple[str, ...]  # names of the source that nothing is made of
    rules: str  # TOML for ``--rules``


@record
class AverageSource:
    """One of the checkpoints that are averaged."""

    path: str
    address: str  # key path of its state dict
    weight: float  # in the mean; all come to 1
    step: float | None  # the global step that the file states
    epoch: float | None
    sigma_rel: float | None = None  # relative width of a snapshot of an EMA
    # From the nearest other checkpoint, in a sample; 0: the same, 1: unrelated.
    distance: float | None = None


@record(kw_only=True)
class AverageReport(WeightsReport):
    """The result of ``ckptool average``, or the plan with ``--dry-run``."""

    averaged: int  # tensors that are means
    newest: tuple[str, ...]  # names of tensors that are those of the newest checkpoint
    statistics: tuple[str, ...]  # batch statistics that were averaged
    sources: tuple[AverageSource, ...] = ()  # the newest last, if the order is known
    into: IntoReport | None = field(default=None, metadata=MAY_BE_ABSENT)  # --into
    posthoc: PosthocReport | None = field(default=None, metadata=MAY_BE_ABSENT)  # --sigma-rel
    order: str = "operands"  # global_step | epoch | name (numbers in it) | operands
    # With --schedule, the counter that tells the intervals: global_step | epoch; or equal.
    intervals: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Path of a copy in a directory -> path of the checkpoint that it repeats and that counts.
    copies: Mapping[str, str] = field(default_factory=dict)
    # Path of a file in a directory that ckptool made of others -> how; it does not count.
    derived: Mapping[str, str] = field(default_factory=dict)
    # With --skip-broken, path of a checkpoint in a directory -> why it does not count.
    skipped: Mapping[str, str] = field(default_factory=dict)

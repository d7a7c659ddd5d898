"""Reports of ``ckptool inspect`` for the directory of a run; see ``base.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptool.records import field, record
from ckptool.reports.base import MAY_BE_ABSENT, ConfiguredReport, MainSlot, SnapshotReport


@record
class RunEntry:
    """One checkpoint of a training run."""

    path: str
    size_bytes: int
    format: str | None
    epoch: float | None
    global_step: float | None
    metrics: Mapping[str, Any]
    ema: str | None  # key path, or the status where none was found
    error: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Metric -> {is: lower or higher, because: …}.
    better: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    main_slot: MainSlot | None = None
    # Snapshots of EMAs that average --sigma-rel combines.
    snapshots: tuple[SnapshotReport, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    # extract-ema | promote-ema | convert | average, from ckptool's note in the file.
    made_by: str | None = None
    modified: str | None = None  # time of the last change, in UTC; None behind a URL
    parameters: int | None = None  # of the model
    lr: tuple[float, ...] = ()  # of the optimizers' groups for the next step, each once
    ema_distance: float | None = None  # of the EMA from the model's weights, sampled
    made_of: str | None = None  # names of the files that ``made_by`` took


@record
class BestReport:
    """The checkpoint that is best by a metric."""

    path: str
    value: float
    better: str  # lower or higher
    because: str  # the source of ``better``: a key path, or "its name"


@record(kw_only=True)
class RunReport(ConfiguredReport):
    """The answer of ``ckptool inspect`` for a directory: a table of a run's checkpoints."""

    path: str
    checkpoints: tuple[RunEntry, ...]
    best: Mapping[str, str]  # metric -> path of the checkpoint that is best by it
    # The same with the value, and the reason why it is the best.
    best_by: Mapping[str, BestReport] = field(default_factory=dict)
    # Path of a file that ckptool made of others of the run -> how: no part of best and trends.
    left_out: Mapping[str, str] = field(default_factory=dict)
    unrated: tuple[str, ...] = ()  # metrics for which lower or higher may be better
